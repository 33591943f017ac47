//! The wire's CreateContainerRequest: storages, and the spec above them.

use protobuf::MessageField;
use protocols::wire::agent::{CreateContainerRequest, Storage};

use super::{ContainerConfig, HostDirectory, Rootfs, spec};

/// Where the agent keeps a container's mounts.
fn directory(container_id: &str) -> String {
    format!("/run/kata-containers/{container_id}")
}

pub(super) fn create(config: &ContainerConfig) -> CreateContainerRequest {
    let directory = directory(&config.id);
    let root = match &config.rootfs {
        Rootfs::OverlayDisk { .. } => format!("{directory}/rootfs"),
        Rootfs::Existing(path) => path.clone(),
    };
    CreateContainerRequest {
        container_id: config.id.clone(),
        exec_id: config.id.clone(),
        storages: storages(&directory, config),
        OCI: MessageField::some(spec::build(config, root)),
        ..Default::default()
    }
}

/// Where a directory of the host's is in the guest, for this container.
pub(super) fn mounted_at(container_id: &str, shared: &HostDirectory) -> String {
    format!("{}/directories/{}", directory(container_id), shared.tag)
}

/// In the order in which they are mounted.
fn storages(directory: &str, config: &ContainerConfig) -> Vec<Storage> {
    let shared = config.directories.iter().map(|shared| Storage {
        driver: "virtio-fs".to_owned(),
        source: shared.tag.clone(),
        fstype: "virtiofs".to_owned(),
        options: ["nosuid", "nodev"]
            .into_iter()
            .chain(shared.readonly.then_some("ro"))
            .map(str::to_owned)
            .collect(),
        mount_point: mounted_at(&config.id, shared),
        ..Default::default()
    });
    let root = root_storages(directory, &config.rootfs);
    root.into_iter().chain(shared).collect()
}

fn root_storages(directory: &str, rootfs: &Rootfs) -> Vec<Storage> {
    let Rootfs::OverlayDisk {
        device,
        fstype,
        upper_size_mib,
    } = rootfs
    else {
        return Vec::new();
    };
    let lower = Storage {
        driver: "blk".to_owned(),
        source: device.clone(),
        fstype: fstype.clone(),
        options: vec!["ro".to_owned()],
        mount_point: format!("{directory}/lower"),
        ..Default::default()
    };
    // The upper and the work directory must be of one filesystem
    // (Documentation/filesystems/overlayfs.rst).
    let bounded = upper_size_mib.map(|size| Storage {
        driver: "ephemeral".to_owned(),
        source: "tmpfs".to_owned(),
        fstype: "tmpfs".to_owned(),
        options: vec![format!("size={size}m"), "mode=0755".to_owned()],
        mount_point: format!("{directory}/writable"),
        ..Default::default()
    });
    let writable = bounded
        .as_ref()
        .map_or(directory, |storage| &storage.mount_point);
    let (upper, work) = (format!("{writable}/upper"), format!("{writable}/work"));
    let create = |path: &str| format!("io.katacontainers.volume.overlayfs.create_directory={path}");
    let overlay = Storage {
        driver: "overlayfs".to_owned(),
        driver_options: vec![create(&upper), create(&work)],
        source: "overlay".to_owned(),
        fstype: "overlay".to_owned(),
        options: vec![
            format!("lowerdir={}", lower.mount_point),
            format!("upperdir={upper}"),
            format!("workdir={work}"),
        ],
        mount_point: format!("{directory}/rootfs"),
        ..Default::default()
    };
    [Some(lower), bounded, Some(overlay)]
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(upper_size_mib: Option<u32>) -> CreateContainerRequest {
        create(&ContainerConfig::new(
            "web",
            Rootfs::OverlayDisk {
                device: "/dev/vda".to_owned(),
                fstype: "erofs".to_owned(),
                upper_size_mib,
            },
            vec!["/bin/true".to_owned()],
        ))
    }

    #[test]
    fn a_disk_becomes_a_lower_and_an_overlay_in_that_order() {
        let request = disk(None);
        let [lower, overlay] = request.storages.as_slice() else {
            panic!("{:?}", request.storages);
        };
        assert_eq!(lower.driver, "blk");
        assert_eq!(lower.options, ["ro"]);
        assert_eq!(
            overlay.options,
            [
                "lowerdir=/run/kata-containers/web/lower",
                "upperdir=/run/kata-containers/web/upper",
                "workdir=/run/kata-containers/web/work"
            ]
        );
        assert_eq!(overlay.mount_point, request.OCI.Root.Path);
    }

    #[test]
    fn a_bounded_upper_layer_lies_with_its_work_directory_on_a_tmpfs_of_that_size() {
        let request = disk(Some(32));
        let [_, writable, overlay] = request.storages.as_slice() else {
            panic!("{:?}", request.storages);
        };
        assert_eq!(writable.options[0], "size=32m");
        assert_eq!(writable.mount_point, "/run/kata-containers/web/writable");
        for option in &overlay.options[1..] {
            assert!(option.contains("=/run/kata-containers/web/writable/"));
        }
    }

    #[test]
    fn a_directory_of_the_hosts_is_mounted_in_the_guest_and_bound_into_the_container() {
        let root = Rootfs::Existing("/srv/root".to_owned());
        let mut config = ContainerConfig::new("web", root, vec!["/bin/true".to_owned()]);
        for (tag, readonly) in [("one", true), ("two", false)] {
            config.directories.push(HostDirectory {
                tag: tag.to_owned(),
                destination: format!("/data/{tag}"),
                readonly,
            });
        }
        let request = create(&config);
        let [one, two] = request.storages.as_slice() else {
            panic!("{:?}", request.storages);
        };
        assert_eq!(
            (one.driver.as_str(), one.source.as_str()),
            ("virtio-fs", "one")
        );
        assert_eq!(one.fstype, "virtiofs");
        assert_eq!(one.options, ["nosuid", "nodev", "ro"]);
        assert_eq!(two.options, ["nosuid", "nodev"]);
        let mounts: Vec<_> = request.OCI.Mounts.iter().rev().take(2).rev().collect();
        for (mount, storage) in mounts.into_iter().zip([one, two]) {
            assert_eq!(mount.source, storage.mount_point);
            assert_eq!(mount.type_, "bind");
            let is_readonly = mount.options.iter().any(|option| option == "ro");
            assert_eq!(is_readonly, storage.source == "one", "{:?}", mount.options);
            assert_eq!(mount.destination, format!("/data/{}", storage.source));
        }
    }

    #[test]
    fn an_existing_directory_needs_no_storage() {
        let config = ContainerConfig::new(
            "web",
            Rootfs::Existing("/srv/root".to_owned()),
            vec!["/bin/true".to_owned()],
        );
        let request = create(&config);
        assert_eq!(request.storages, []);
        assert_eq!(request.OCI.Root.Path, "/srv/root");
    }
}
