//! Containers and their seccomp profiles, past what every other message would
//! be refused for at once: conversion, and whether they can be done at all,
//! for which the filter is made.

use crate::service::container::CreateContainer;
use protobuf::Message;
use protocols::wire::agent;

/// The bytes of a CreateContainer.
pub fn container(bytes: &[u8]) {
    let Ok(mut request) = agent::CreateContainerRequest::parse_from_bytes(bytes) else {
        return;
    };
    request.container_id = "container".into();
    request.devices.clear();
    request.shared_mounts.clear();
    request.sandbox_pidns = false;
    (request.stdin_port, request.stdout_port, request.stderr_port) = (0, 0, 0);
    if let Some(spec) = request.OCI.as_mut() {
        spec.Solaris.clear();
        spec.Windows.clear();
        spec.Process.mut_or_insert_default();
        spec.Root.mut_or_insert_default();
    }
    create(request);
}

/// The bytes of a seccomp profile.
pub fn seccomp(bytes: &[u8]) {
    let Ok(profile) = agent::LinuxSeccomp::parse_from_bytes(bytes) else {
        return;
    };
    let mut spec = agent::Spec::new();
    spec.Process.mut_or_insert_default().Args = vec!["true".into()];
    spec.Root.mut_or_insert_default().Path = "/root".into();
    spec.Linux.mut_or_insert_default().Seccomp = Some(profile).into();
    let mut request = agent::CreateContainerRequest::new();
    request.container_id = "container".into();
    request.OCI = Some(spec).into();
    create(request);
}

fn create(request: agent::CreateContainerRequest) {
    if let Ok(create) = CreateContainer::try_from(request) {
        let _ = create.spec.validate();
    }
}
