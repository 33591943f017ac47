//! The recipe, on an agent and modules made for the purpose.

use super::*;
use crate::archive::members;
use crate::compression::Compression;
use crate::digest::Digest;
use crate::initrd::{self, Initrd};
use crate::sample;
use std::collections::BTreeMap;
use std::fs;

/// A directory with an agent, modules and a policy, and a recipe for them.
fn kitchen() -> (tempfile::TempDir, Recipe) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("agent"), sample::static_program(sample::MACHINE)).unwrap();
    fs::create_dir(at("modules")).unwrap();
    sample::lay_out_guest_modules(&at("modules"));
    fs::write(
        at("policy.rego"),
        "package agent_policy\ndefault ExecProcessRequest := false\n",
    )
    .unwrap();
    fs::write(at("extra"), "extra").unwrap();
    let recipe = Recipe {
        agent: at("agent"),
        agent_version: None,
        base: Base::None,
        packages: Vec::new(),
        modules: Some(at("modules")),
        extra_modules: Vec::new(),
        kernel: None,
        kernel_config: None,
        policy: Some(at("policy.rego")),
        files: vec![AddedFile {
            source: at("extra"),
            destination: "/tmp/extra".parse().unwrap(),
            permissions: 0o600,
        }],
        source_date_epoch: 0,
    };
    (directory, recipe)
}

fn build(recipe: &Recipe) -> Result<Initrd, ContentsError> {
    let contents = assemble(recipe, Kind::Initrd)?;
    Ok(initrd::pack(contents, Compression::None).unwrap())
}

fn modes(bytes: &[u8]) -> BTreeMap<String, u32> {
    members(bytes)
        .map(|member| {
            let member = member.unwrap();
            let path = String::from_utf8(member.path.to_vec()).unwrap();
            (path, member.mode)
        })
        .collect()
}

#[test]
fn the_same_inputs_give_the_same_bytes_wherever_they_lie() {
    let (_here, first) = kitchen();
    let (_there, second) = kitchen();
    for compression in Compression::ALL {
        let pack = |recipe| {
            let contents = assemble(recipe, Kind::Initrd).unwrap();
            initrd::pack(contents, compression).unwrap()
        };
        let (first, second) = (pack(&first), pack(&second));
        assert!(first.bytes == second.bytes);
        let manifest = |built: &Initrd| serde_json::to_string(&built.manifest).unwrap();
        assert_eq!(manifest(&first), manifest(&second));
    }
}

#[test]
fn a_disk_has_its_agent_at_sbin_init_and_no_device_node() {
    let (_kitchen, recipe) = kitchen();
    let contents = assemble(&recipe, Kind::Erofs).unwrap();
    let content = |wanted: &str| {
        let mut entries = contents.archive.entries();
        let found = entries.find(|(path, _)| path.as_str() == wanted);
        found.map(|(_, entry)| entry.content.clone())
    };
    assert!(matches!(
        content("sbin/guest-agent"),
        Some(Content::File(_))
    ));
    let link = Content::Symlink("guest-agent".into());
    assert_eq!(content("sbin/init"), Some(link));
    assert_eq!(content("init"), None);
    assert_eq!(content("dev/console"), None);
}

#[test]
fn the_manifest_inside_says_what_the_one_outside_says_of_the_contents() {
    let (kitchen, mut recipe) = kitchen();
    let kernel = kitchen.path().join("vmlinuz");
    fs::write(&kernel, "kernel").unwrap();
    recipe.kernel = Some(kernel);
    let built = build(&recipe).unwrap();
    let inside = members(&built.bytes)
        .map(Result::unwrap)
        .find(|member| member.path == MANIFEST.as_bytes())
        .unwrap();
    let mut inside: Manifest = serde_json::from_slice(inside.data).unwrap();
    assert!(inside.image.is_none());
    assert_eq!(inside.inputs[0].role, Role::Kernel);
    assert_eq!(inside.inputs[0].sha256, Digest::of(b"kernel"));
    let mut outside = built.manifest.clone();
    outside.image = None;
    outside
        .files
        .retain(|file| file.path != format!("/{MANIFEST}"));
    assert_eq!(outside.files.len() + 1, built.manifest.files.len());
    inside.files.sort_by(|a, b| a.path.cmp(&b.path));
    outside.files.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(inside, outside);
}

#[test]
fn the_initrd_has_what_the_kernel_and_pid_1_look_for() {
    let (_kitchen, recipe) = kitchen();
    let built = build(&recipe).unwrap();
    let modes = modes(&built.bytes);
    let expected = [
        ("init", 0o100_755),
        ("dev/console", 0o020_600),
        ("proc", 0o040_555),
        ("tmp", 0o041_777),
        ("tmp/extra", 0o100_600),
        ("lib/modules", 0o040_755),
        (POLICY, 0o100_644),
        (MODULE_LIST, 0o100_644),
    ];
    for (path, mode) in expected {
        assert_eq!(modes.get(path), Some(&mode), "{path}");
    }
    let list = members(&built.bytes)
        .map(Result::unwrap)
        .find(|member| member.path == MODULE_LIST.as_bytes())
        .unwrap();
    let expected: String = kernel_config::modules_in_load_order(None)
        .map(|name| format!("/lib/modules/{}/{name}.ko\n", sample::RELEASE))
        .collect();
    assert_eq!(String::from_utf8_lossy(list.data), expected);
    for path in expected.lines() {
        assert!(modes.contains_key(&path[1..]), "{path}");
    }
}

#[test]
fn the_manifest_names_every_input_and_every_file() {
    let (_kitchen, recipe) = kitchen();
    let built = build(&recipe).unwrap();
    let manifest = &built.manifest;
    let image = manifest.image.as_ref().unwrap();
    assert_eq!(image.sha256, Digest::of(&built.bytes));
    assert_eq!(manifest.kernel_release.as_deref(), Some(sample::RELEASE));
    assert_eq!(manifest.inputs.len(), 3 + manifest.modules.len());
    assert_eq!(manifest.files.len(), members(&built.bytes).count());
}

#[test]
fn a_kernel_without_modules_gets_no_list() {
    let (_kitchen, mut recipe) = kitchen();
    recipe.modules = None;
    let built = build(&recipe).unwrap();
    assert!(!modes(&built.bytes).contains_key(MODULE_LIST));
}

#[test]
fn an_agent_that_needs_an_interpreter_is_refused() {
    let (kitchen, mut recipe) = kitchen();
    recipe.agent = kitchen.path().join("dynamic");
    fs::write(&recipe.agent, sample::dynamic_program()).unwrap();
    let error = build(&recipe).unwrap_err();
    let ContentsError::Agent {
        source: ElfError::Interpreter(name),
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert!(name.starts_with("/lib64/ld.so"), "{name}");
}

#[test]
fn an_agent_of_another_machine_is_refused() {
    let (_kitchen, recipe) = kitchen();
    fs::write(&recipe.agent, sample::static_program(183)).unwrap();
    let error = build(&recipe).unwrap_err();
    assert!(matches!(error, ContentsError::Machine { .. }), "{error}");
}

#[test]
fn a_forbidden_module_under_another_name_is_refused() {
    for forbidden in kernel_config::requirement::FORBIDDEN {
        let (kitchen, recipe) = kitchen();
        let disguised = sample::module(forbidden.module, &[]);
        fs::write(kitchen.path().join("extra"), disguised).unwrap();
        let error = build(&recipe).unwrap_err();
        let ContentsError::Modules(ModuleError::Forbidden(found)) = error else {
            panic!("{error}")
        };
        assert_eq!(found.module, forbidden.module);
    }
}

#[test]
fn a_policy_that_does_not_load_is_refused() {
    let (kitchen, recipe) = kitchen();
    fs::write(
        kitchen.path().join("policy.rego"),
        "package agent_policy\nx :=",
    )
    .unwrap();
    let error = build(&recipe).unwrap_err();
    assert!(matches!(error, ContentsError::Policy(_)), "{error}");
    fs::write(kitchen.path().join("policy.rego"), [0xff]).unwrap();
    let error = build(&recipe).unwrap_err();
    assert!(matches!(error, ContentsError::NotText(_)), "{error}");
}

#[test]
fn a_kernel_that_lacks_something_is_refused_by_name() {
    let (kitchen, mut recipe) = kitchen();
    let config = kitchen.path().join("config");
    fs::write(&config, "CONFIG_ACPI=y\nCONFIG_VHOST_VSOCK=y\n").unwrap();
    recipe.kernel_config = Some(config);
    let error = build(&recipe).unwrap_err().to_string();
    assert!(error.contains("missing CONFIG_EROFS_FS"), "{error}");
    assert!(error.contains("forbidden CONFIG_VHOST_VSOCK"), "{error}");
    assert!(!error.contains("CONFIG_ACPI "), "{error}");
}

#[test]
fn a_file_cannot_take_the_place_of_another() {
    for taken in ["/init", "/dev/console", "/tmp", "/init/below"] {
        let (_kitchen, mut recipe) = kitchen();
        recipe.files[0].destination = taken.parse().unwrap();
        let error = build(&recipe).unwrap_err();
        assert!(
            matches!(error, ContentsError::Archive(_)),
            "{taken}: {error}"
        );
    }
}

#[test]
fn an_input_that_is_no_regular_file_is_refused_at_once() {
    let (kitchen, mut recipe) = kitchen();
    recipe.agent = kitchen.path().to_path_buf();
    let error = build(&recipe).unwrap_err();
    assert!(matches!(
        error,
        ContentsError::Input(InputError::NotRegular(_))
    ));
    let fifo = kitchen.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    recipe.agent = fifo;
    let error = build(&recipe).unwrap_err();
    assert!(matches!(
        error,
        ContentsError::Input(InputError::NotRegular(_))
    ));
}

/// A base that is laid out as distributions do, with packages.
fn base(kitchen: &tempfile::TempDir) -> std::path::PathBuf {
    let root = kitchen.path().join("base");
    let write = |path: &str, text: &[u8]| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("usr/sbin/init", b"another");
    write("usr/lib/os-release", b"ID=debian\n");
    write(
        "var/lib/dpkg/status",
        b"Package: libc6\nStatus: install ok installed\nVersion: 2.36-9+deb12u9\nArchitecture: amd64\n",
    );
    write("etc/hosts", b"127.0.0.1 localhost\n");
    std::os::unix::fs::symlink("usr/sbin", root.join("sbin")).unwrap();
    std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
    root
}

#[test]
fn the_agent_lies_on_its_base_where_links_lead() {
    let (kitchen, mut recipe) = kitchen();
    recipe.base = Base::Directory(base(&kitchen));
    recipe.files[0].destination = "/etc/hosts".parse().unwrap();
    let contents = assemble(&recipe, Kind::Erofs).unwrap();
    let get = |path: &str| {
        let entry = contents.archive.get(&path.parse().unwrap());
        entry.map(|entry| entry.content.clone())
    };
    let link = |target: &str| Some(Content::Symlink(target.into()));
    assert_eq!(get("sbin"), link("usr/sbin"));
    assert_eq!(get("usr/sbin/init"), link("guest-agent"));
    assert!(matches!(
        get("usr/sbin/guest-agent"),
        Some(Content::File(_))
    ));
    assert_eq!(get("etc/hosts"), Some(Content::File(b"extra".to_vec())));
    let modules = contents
        .archive
        .entries()
        .filter(|(path, _)| path.as_str().starts_with("usr/lib/modules/6.1.0-test/"));
    assert!(modules.count() > 0);
    let manifest = &contents.manifest;
    assert_eq!(manifest.packages[0].name, "libc6");
    assert_eq!(
        manifest.changes,
        [
            "/usr/sbin/init: what the base has there was replaced",
            "/etc/hosts: what the base has there was replaced",
        ]
    );
    let bases = manifest
        .inputs
        .iter()
        .filter(|input| input.role == Role::Base);
    assert_eq!(bases.count(), 1);
    // What was put there once is not replaced.
    let again = recipe.files[0].clone();
    recipe.files.push(again);
    let error = assemble(&recipe, Kind::Erofs).unwrap_err();
    assert!(matches!(error, ContentsError::Archive(_)), "{error}");
}

#[test]
fn a_base_cannot_pass_anything_off_as_the_builders() {
    for path in ["etc/kata-opa/default-policy.rego", "etc/tardigrade/modules"] {
        let (kitchen, mut recipe) = kitchen();
        let root = base(&kitchen);
        let file = root
            .join("var/hidden")
            .join(path.strip_prefix("etc/").unwrap());
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "package agent_policy\n").unwrap();
        fs::remove_dir_all(root.join("etc")).unwrap();
        std::os::unix::fs::symlink("/var/hidden", root.join("etc")).unwrap();
        recipe.base = Base::Directory(root);
        let error = assemble(&recipe, Kind::Initrd).unwrap_err();
        assert!(matches!(error, ContentsError::Reserved(_)), "{error}");
    }
}

#[test]
fn a_base_holds_no_forbidden_module_under_whatever_name_packed_or_not() {
    let forbidden = kernel_config::requirement::FORBIDDEN[0].module;
    let plain = sample::module(forbidden, &[]);
    let packed = format!("{}.ko.xz", forbidden.replace('_', "-"));
    for (name, bytes) in [("notes.txt", plain.as_slice()), (&packed, b"\xfd7zXZ")] {
        let (kitchen, mut recipe) = kitchen();
        let root = base(&kitchen);
        fs::write(root.join("usr/lib").join(name), bytes).unwrap();
        recipe.base = Base::Directory(root);
        let error = assemble(&recipe, Kind::Erofs).unwrap_err();
        let refused = matches!(error, ContentsError::Modules(ModuleError::Forbidden(_)));
        assert!(refused, "{name}: {error}");
    }
}

#[test]
fn the_list_of_what_is_inside_has_every_file_and_only_ids_that_are_there() {
    let (kitchen, mut recipe) = kitchen();
    recipe.base = Base::Directory(base(&kitchen));
    let kernel = kitchen.path().join("vmlinuz");
    fs::write(&kernel, "kernel").unwrap();
    recipe.kernel = Some(kernel);
    recipe.source_date_epoch = 1_700_000_000;
    let contents = assemble(&recipe, Kind::Erofs).unwrap();
    let text = serde_json::to_string(&crate::spdx::document(&contents)).unwrap();
    let again = crate::spdx::document(&assemble(&recipe, Kind::Erofs).unwrap());
    assert_eq!(text, serde_json::to_string(&again).unwrap());
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list["spdxVersion"], "SPDX-2.3");
    assert_eq!(list["creationInfo"]["created"], "2023-11-14T22:13:20Z");
    let files = list["files"].as_array().unwrap();
    let listed: BTreeMap<_, _> = files
        .iter()
        .map(|file| {
            let sha256 = &file["checksums"][1];
            assert_eq!(sha256["algorithm"], "SHA256");
            let name = file["fileName"].as_str().unwrap();
            (name[1..].to_owned(), sha256["checksumValue"].clone())
        })
        .collect();
    let expected: BTreeMap<_, _> = contents
        .manifest
        .files
        .iter()
        .filter_map(|file| match &file.content {
            manifest::ListedContent::File { sha256, .. } => {
                Some((file.path.clone(), serde_json::json!(sha256)))
            }
            _ => None,
        })
        .collect();
    assert_eq!(listed, expected);
    let packages = list["packages"].as_array().unwrap();
    let names: Vec<_> = packages
        .iter()
        .map(|package| package["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["guest-image", "guest-agent", "linux", "libc6"]);
    let url = &packages[3]["externalRefs"][0]["referenceLocator"];
    assert_eq!(url, "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64");
    let ids: std::collections::BTreeSet<_> = files
        .iter()
        .chain(packages)
        .chain([&list])
        .map(|element| element["SPDXID"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), files.len() + packages.len() + 1);
    for relationship in list["relationships"].as_array().unwrap() {
        for end in ["spdxElementId", "relatedSpdxElement"] {
            assert!(ids.contains(relationship[end].as_str().unwrap()));
        }
    }
    let modules = files
        .iter()
        .filter(|file| file.get("comment").is_some())
        .count();
    assert_eq!(modules, contents.manifest.modules.len());
}
