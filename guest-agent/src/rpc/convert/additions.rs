//! What the OCI specification has and the wire has no field for comes as an
//! annotation: a fragment of a spec in JSON, in the specification's own words.

use super::{ConvertError, invalid, unsupported};
use guest_runtime::cgroup::RdmaLimit;
use guest_runtime::container::{
    Clock, ContainerSpec, IdMapping, IdMappings, IoPriority, MountSpec, Scheduler, TimeOffset,
};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The annotation. Part of the request, it is shown to the policy as the rest.
const ADDITIONS: &str = "dev.tardigrade.oci";

/// The fragment. A field that is not here is refused by its name.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Additions {
    domainname: Option<String>,
    mounts: Vec<MountFields>,
    process: Process,
    linux: Linux,
}

/// For the mount of the spec that has the destination.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MountFields {
    destination: String,
    uid_mappings: Vec<IdMappingFields>,
    gid_mappings: Vec<IdMappingFields>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdMappingFields {
    #[serde(rename = "containerID")]
    container_id: u32,
    #[serde(rename = "hostID")]
    host_id: u32,
    size: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct Linux {
    resources: ResourceFields,
    time_offsets: BTreeMap<Clock, TimeOffsetFields>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TimeOffsetFields {
    secs: i64,
    nanosecs: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ResourceFields {
    cpu: CpuFields,
    rdma: BTreeMap<String, RdmaFields>,
    unified: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CpuFields {
    burst: Option<u64>,
    idle: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct RdmaFields {
    hca_handles: Option<u32>,
    hca_objects: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct Process {
    user: User,
    scheduler: Option<SchedulerFields>,
    io_priority: Option<IoPriorityFields>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct User {
    umask: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SchedulerFields {
    policy: String,
    #[serde(default)]
    nice: i32,
    #[serde(default)]
    priority: u32,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    runtime: u64,
    #[serde(default)]
    deadline: u64,
    #[serde(default)]
    period: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IoPriorityFields {
    class: String,
    #[serde(default)]
    priority: i64,
}

impl Additions {
    /// What the annotations hold of it.
    pub(super) fn of(annotations: &HashMap<String, String>) -> Result<Self, ConvertError> {
        match annotations.get(ADDITIONS) {
            Some(text) => serde_json::from_str(text)
                // An object: a list would be taken for its fields.
                .and_then(|fields| serde_json::from_value(serde_json::Value::Object(fields)))
                .map_err(invalid(ADDITIONS, text)),
            None => Ok(Self::default()),
        }
    }

    pub(super) fn add_to(self, spec: &mut ContainerSpec) -> Result<(), ConvertError> {
        if let Some(name) = self.domainname {
            // The parameter and the field are the same, uts_namespaces(7).
            spec.sysctl.insert("kernel.domainname".into(), name);
        }
        map_mounts(&mut spec.mounts, self.mounts)?;
        let offsets = self.linux.time_offsets.into_iter();
        spec.time_offsets = offsets
            .map(|(clock, TimeOffsetFields { secs, nanosecs })| {
                (clock, TimeOffset { secs, nanosecs })
            })
            .collect();
        let fields = self.linux.resources;
        spec.resources.cpu_burst = fields.cpu.burst;
        spec.resources.cpu_idle = match fields.cpu.idle {
            None => None,
            Some(0) => Some(false),
            Some(1) => Some(true),
            Some(other) => {
                return Err(unsupported(format!("resources.cpu.idle {other}")));
            }
        };
        let rdma = fields.rdma.into_iter();
        spec.resources.rdma = rdma
            .map(|(device, limit)| {
                let limit = RdmaLimit {
                    handles: limit.hca_handles,
                    objects: limit.hca_objects,
                };
                (device, limit)
            })
            .collect();
        spec.resources.unified = fields.unified;
        spec.process.umask = self.process.user.umask;
        spec.process.scheduler = self.process.scheduler.map(scheduler).transpose()?;
        spec.process.io_priority = self.process.io_priority.map(io_priority).transpose()?;
        Ok(())
    }
}

/// Gives mounts their own mappings: each fragment is about one mount, and each
/// mount is looked at once.
fn map_mounts(mounts: &mut [MountSpec], fragments: Vec<MountFields>) -> Result<(), ConvertError> {
    let refused = |destination: &Path| {
        let destination = destination.display();
        unsupported(format!("a fragment of not one mount, {destination}"))
    };
    let mut wanted = BTreeMap::new();
    for fields in fragments {
        let destination = PathBuf::from(&fields.destination);
        if wanted.insert(destination.clone(), (fields, 0)).is_some() {
            return Err(refused(&destination));
        }
    }
    for mount in mounts {
        if let Some((fields, found)) = wanted.get_mut(&mount.destination) {
            *found += 1;
            mount.id_mappings = Some(IdMappings {
                users: id_mappings(&fields.uid_mappings),
                groups: id_mappings(&fields.gid_mappings),
            });
        }
    }
    match wanted.iter().find(|(_, (_, found))| *found != 1) {
        Some((destination, _)) => Err(refused(destination)),
        None => Ok(()),
    }
}

fn id_mappings(fields: &[IdMappingFields]) -> Vec<IdMapping> {
    let mapping = |one: &IdMappingFields| IdMapping {
        inside: one.container_id,
        outside: one.host_id,
        size: one.size,
    };
    fields.iter().map(mapping).collect()
}

fn scheduler(fields: SchedulerFields) -> Result<Scheduler, ConvertError> {
    Ok(Scheduler {
        policy: parse(&fields.policy)?,
        nice: fields.nice,
        priority: fields.priority,
        flags: fields
            .flags
            .iter()
            .map(|flag| parse(flag))
            .collect::<Result<_, _>>()?,
        runtime: fields.runtime,
        deadline: fields.deadline,
        period: fields.period,
    })
}

fn io_priority(fields: IoPriorityFields) -> Result<IoPriority, ConvertError> {
    IoPriority::new(parse(&fields.class)?, fields.priority)
        .map_err(|error| unsupported(error.to_string()))
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(word: &str) -> Result<T, ConvertError> {
    word.parse()
        .map_err(|error: T::Err| unsupported(error.to_string()))
}
