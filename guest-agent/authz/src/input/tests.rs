//! The shape of inputs, against hand-written expectations, and against what
//! reflection says of any message, however odd.

use proptest::prelude::*;
use protobuf::reflect::{
    FieldDescriptor, FileDescriptor, MessageDescriptor, ReflectFieldRef, ReflectValueBox,
    ReflectValueRef, RuntimeFieldType, RuntimeType,
};
use protobuf::{EnumOrUnknown, MessageDyn, MessageField};
use protocols::wire::{agent, lifecycle, types};
use serde_json::json;

use super::*;
use crate::request::question;

#[test]
fn scalars_are_there_even_when_zero_and_sub_messages_are_null_when_absent() {
    let request = agent::CreateContainerRequest {
        container_id: "web".into(),
        devices: vec![agent::Device {
            type_: "blk".into(),
            options: vec!["ro".into()],
            ..Default::default()
        }],
        ..Default::default()
    };
    let expected = json!({
        "container_id": "web",
        "exec_id": "",
        "string_user": null,
        "devices": [{"id": "", "type_": "blk", "vm_path": "", "container_path": "", "options": ["ro"]}],
        "storages": [],
        "OCI": null,
        "sandbox_pidns": false,
        "shared_mounts": [],
        "stdin_port": 0,
        "stdout_port": 0,
        "stderr_port": 0,
    });
    assert_eq!(of(&request), Ok(expected));
}

#[test]
fn a_spec_keeps_its_own_names_and_maps_are_objects() {
    let spec = agent::Spec {
        Version: "1.1.0".into(),
        Root: MessageField::some(agent::Root {
            Path: "/rootfs".into(),
            Readonly: true,
            ..Default::default()
        }),
        Mounts: vec![agent::Mount {
            destination: "/proc".into(),
            type_: "proc".into(),
            ..Default::default()
        }],
        Annotations: [(
            "io.kubernetes.cri.container-type".to_string(),
            "sandbox".to_string(),
        )]
        .into(),
        ..Default::default()
    };
    let expected = json!({
        "Version": "1.1.0",
        "Process": null,
        "Root": {"Path": "/rootfs", "Readonly": true},
        "Hostname": "",
        "Mounts": [{"destination": "/proc", "source": "", "type_": "proc", "options": []}],
        "Hooks": null,
        "Annotations": {"io.kubernetes.cri.container-type": "sandbox"},
        "Linux": null,
        "Solaris": null,
        "Windows": null,
    });
    assert_eq!(of(&spec), Ok(expected));
}

#[test]
fn enums_are_numbers_even_unknown_ones() {
    let request = agent::UpdateInterfaceRequest {
        interface: MessageField::some(types::Interface {
            IPAddresses: vec![
                types::IPAddress {
                    family: types::IPFamily::v6.into(),
                    ..Default::default()
                },
                types::IPAddress {
                    family: EnumOrUnknown::from_i32(77),
                    ..Default::default()
                },
            ],
            hwAddr: "02:00:00:00:00:01".into(),
            mtu: u64::MAX,
            ..Default::default()
        }),
        ..Default::default()
    };
    let expected = json!({"interface": {
        "device": "",
        "name": "",
        "IPAddresses": [
            {"family": 1, "address": "", "mask": ""},
            {"family": 77, "address": "", "mask": ""},
        ],
        "mtu": u64::MAX,
        "hwAddr": "02:00:00:00:00:01",
        "devicePath": "",
        "type_": "",
        "raw_flags": 0,
    }});
    assert_eq!(of(&request), Ok(expected));
}

#[test]
fn an_absent_optional_scalar_is_null_and_a_given_zero_is_zero() {
    let request = agent::MemAgentMemcgConfig {
        disabled: Some(false),
        swappiness_max: Some(0),
        period_secs: Some(7),
        ..Default::default()
    };
    let expected = json!({
        "disabled": false,
        "swap": null,
        "swappiness_max": 0,
        "period_secs": 7,
        "period_psi_percent_limit": null,
        "eviction_psi_percent_limit": null,
        "eviction_run_aging_count_min": null,
    });
    assert_eq!(of(&request), Ok(expected));
}

#[test]
fn bytes_are_an_array_of_numbers_and_signs_are_kept() {
    let request = agent::WriteStreamRequest {
        container_id: "c1".into(),
        data: vec![0, 127, 255],
        ..Default::default()
    };
    let expected = json!({"container_id": "c1", "exec_id": "", "data": [0, 127, 255]});
    assert_eq!(of(&request), Ok(expected));
    let time = agent::SetGuestDateTimeRequest {
        Sec: i64::MIN,
        Usec: -1,
        ..Default::default()
    };
    assert_eq!(of(&time), Ok(json!({"Sec": i64::MIN, "Usec": -1})));
    assert_eq!(of(&agent::ListRoutesRequest::default()), Ok(json!({})));
}

fn copy_file(file_mode: u32, data: &[u8]) -> Result<Value, InputError> {
    let request = agent::CopyFileRequest {
        path: "/run/kata-containers/shared/containers/x".into(),
        file_size: 3,
        file_mode,
        dir_mode: 0o755,
        uid: -1,
        gid: 5,
        offset: 1,
        data: data.to_vec(),
        ..Default::default()
    };
    question(&request).map(|question| question.input)
}

#[test]
fn copy_file_is_reduced_and_never_shows_data() {
    let expected = json!({
        "path": "/run/kata-containers/shared/containers/x",
        "file_type": "Regular",
        "symlink_target": null,
        "file_size": 3,
        "file_mode": 0o100_644,
        "dir_mode": 0o755,
        "uid": -1,
        "gid": 5,
        "offset": 1,
    });
    assert_eq!(copy_file(0o100_644, &[0xff]), Ok(expected));
}

#[test]
fn copy_file_types_are_exact_and_a_symlink_shows_its_target() {
    let symlink = copy_file(0o120_777, b"../etc").unwrap();
    assert_eq!(symlink["file_type"], "Symlink");
    assert_eq!(symlink["symlink_target"], "../etc");
    assert_eq!(
        copy_file(0o120_777, &[0xff]),
        Err(InputError::SymlinkTarget)
    );
    assert_eq!(copy_file(0o040_755, b"").unwrap()["file_type"], "Directory");
    // Modes that merely contain the bits of a symlink, a directory or a file.
    for mode in [0o130_000, 0o140_000, 0o060_000, 0o170_000, 0o644] {
        let unknown = copy_file(mode, b"x").unwrap();
        assert_eq!(unknown["file_type"], "Unknown", "{mode:o}");
        assert_eq!(unknown["symlink_target"], Value::Null);
    }
}

#[test]
fn an_input_is_bounded_before_it_is_built() {
    let write = |size| agent::WriteStreamRequest {
        data: vec![1; size],
        ..Default::default()
    };
    assert!(of(&write(MAX_VALUES - 16)).is_ok());
    assert_eq!(
        of(&write(MAX_VALUES)),
        Err(InputError::TooLarge { limit: MAX_VALUES })
    );
}

fn all_messages() -> Vec<MessageDescriptor> {
    let files: [&FileDescriptor; 3] = [
        types::file_descriptor(),
        agent::file_descriptor(),
        lifecycle::file_descriptor(),
    ];
    files.iter().flat_map(|file| file.messages()).collect()
}

#[test]
fn type_is_the_only_keyword_among_field_names_and_there_are_no_oneofs() {
    // The Rust reference, "Keywords": strict and reserved ones.
    const KEYWORDS: &str = " as async await break const continue crate dyn else enum extern false fn for gen if impl in let loop match mod move mut pub ref return self Self static struct super trait true type unsafe use where while abstract become box do final macro override priv try typeof unsized virtual yield ";
    for message in all_messages() {
        assert_eq!(message.oneofs().count(), 0, "{message}");
        for field in message.fields() {
            let keyword = KEYWORDS.contains(&format!(" {} ", field.name()));
            assert!(!keyword || field.name() == "type", "{field}");
        }
    }
}

/// Fills `message` as `seed` says: which fields, how many elements, which values.
fn fill(message: &mut dyn MessageDyn, seed: &mut impl Iterator<Item = u8>, depth: usize) {
    for field in message.descriptor_dyn().fields() {
        if seed.next().unwrap_or(0).is_multiple_of(4) {
            continue;
        }
        match field.runtime_field_type() {
            RuntimeFieldType::Singular(kind) => {
                if let Some(value) = arbitrary(&kind, seed, depth) {
                    field.set_singular_field(message, value);
                }
            }
            RuntimeFieldType::Repeated(kind) => {
                for _ in 0..seed.next().unwrap_or(0) % 3 {
                    if let Some(value) = arbitrary(&kind, seed, depth) {
                        field.mut_repeated(message).push(value);
                    }
                }
            }
            RuntimeFieldType::Map(key, value) => {
                let key = arbitrary(&key, seed, depth);
                if let (Some(key), Some(value)) = (key, arbitrary(&value, seed, depth)) {
                    field.mut_map(message).insert(key, value);
                }
            }
        }
    }
}

fn arbitrary(
    kind: &RuntimeType,
    seed: &mut impl Iterator<Item = u8>,
    depth: usize,
) -> Option<ReflectValueBox> {
    let byte = seed.next()?;
    let number = u64::from_le_bytes([byte, 0, 0, byte, 255, 0, byte, byte]);
    Some(match kind {
        RuntimeType::I32 => ReflectValueBox::I32(-i32::from(byte)),
        RuntimeType::I64 => ReflectValueBox::I64(number.cast_signed()),
        RuntimeType::U32 => ReflectValueBox::U32(u32::from(byte) << 24),
        RuntimeType::U64 => ReflectValueBox::U64(number),
        RuntimeType::F32 => ReflectValueBox::F32(f32::NAN),
        RuntimeType::F64 => ReflectValueBox::F64(f64::INFINITY),
        RuntimeType::Bool => ReflectValueBox::Bool(byte & 1 == 1),
        RuntimeType::String => ReflectValueBox::String(format!("{}\u{0}\"", char::from(byte))),
        RuntimeType::VecU8 => ReflectValueBox::Bytes(vec![byte; usize::from(byte)]),
        RuntimeType::Enum(kind) => ReflectValueBox::Enum(kind.clone(), i32::from(byte) - 9),
        RuntimeType::Message(kind) => {
            let mut message = kind.new_instance();
            if depth < 12 {
                fill(&mut *message, seed, depth + 1);
            }
            ReflectValueBox::Message(message)
        }
    })
}

/// `message` as a policy sees it, by reflection.
fn reflected(message: &dyn MessageDyn) -> Value {
    let descriptor = message.descriptor_dyn();
    let shown = descriptor.fields().map(|field| {
        let name = match field.name() {
            "type" => "type_",
            name => name,
        };
        (name.to_string(), reflected_field(&field, message))
    });
    Value::Object(shown.collect())
}

fn reflected_field(field: &FieldDescriptor, message: &dyn MessageDyn) -> Value {
    match field.get_reflect(message) {
        ReflectFieldRef::Optional(value) => match value.value() {
            Some(value) => reflected_value(value),
            None if is_nullable(field) => Value::Null,
            None => reflected_value(field.singular_default_value()),
        },
        ReflectFieldRef::Repeated(values) => (&values).into_iter().map(reflected_value).collect(),
        ReflectFieldRef::Map(entries) => {
            let entries = (&entries).into_iter();
            let entries = entries.map(|(key, value)| (key.to_string(), reflected_value(value)));
            Value::Object(entries.collect())
        }
    }
}

fn reflected_value(value: ReflectValueRef<'_>) -> Value {
    match value {
        ReflectValueRef::U32(number) => number.into(),
        ReflectValueRef::U64(number) => number.into(),
        ReflectValueRef::I32(number) => number.into(),
        ReflectValueRef::I64(number) => number.into(),
        ReflectValueRef::F32(number) => number.into(),
        ReflectValueRef::F64(number) => number.into(),
        ReflectValueRef::Bool(truth) => truth.into(),
        ReflectValueRef::Enum(_, number) => number.into(),
        ReflectValueRef::String(text) => text.into(),
        ReflectValueRef::Bytes(bytes) => bytes.iter().copied().map(Value::from).collect(),
        ReflectValueRef::Message(message) => reflected(&*message),
    }
}

/// Whether an absent field is null, and not its default value.
fn is_nullable(field: &FieldDescriptor) -> bool {
    field.proto().proto3_optional()
        || matches!(
            field.runtime_field_type(),
            RuntimeFieldType::Singular(RuntimeType::Message(_))
        )
}

/// What is shown of the message of that name with these bytes: every message
/// of the wire, by the list that inputs are made from. None where the bytes
/// are no such message.
fn shown(name: &str, bytes: &[u8]) -> Option<Value> {
    macro_rules! by_name {
        ($($message:ty { $($field:ident,)* })*) => {
            match name {
                $(<$message as protobuf::Message>::NAME => {
                    let message = <$message as protobuf::Message>::parse_from_bytes(bytes).ok()?;
                    Some(of(&message).unwrap())
                })*
                name => panic!("{name} is not in the list of messages"),
            }
        };
    }
    protocols::for_each_message!(by_name)
}

#[test]
fn no_message_has_itself_among_its_parts() {
    fn visit(message: &MessageDescriptor, above: &mut Vec<String>) {
        let name = message.full_name().to_string();
        assert!(!above.contains(&name), "{above:?} {name}");
        above.push(name);
        for field in message.fields() {
            let (RuntimeFieldType::Singular(kind)
            | RuntimeFieldType::Repeated(kind)
            | RuntimeFieldType::Map(_, kind)) = field.runtime_field_type();
            if let RuntimeType::Message(part) = kind {
                visit(&part, above);
            }
        }
        above.pop();
    }
    for message in all_messages() {
        visit(&message, &mut Vec::new());
    }
}

proptest! {
    #[test]
    fn any_message_is_shown_as_reflection_shows_it(
        which in any::<prop::sample::Index>(),
        seed in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let messages = all_messages();
        let descriptor = &messages[which.index(messages.len())];
        let mut message = descriptor.new_instance();
        fill(&mut *message, &mut seed.into_iter(), 0);
        let bytes = message.write_to_bytes_dyn().unwrap();
        prop_assert_eq!(shown(descriptor.name(), &bytes), Some(reflected(&*message)));
    }

    #[test]
    fn whatever_bytes_parse_are_shown_as_reflection_shows_them(
        which in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let messages = all_messages();
        let descriptor = &messages[which.index(messages.len())];
        let reflected = descriptor.parse_from_bytes(&bytes).ok().map(|message| reflected(&*message));
        prop_assert_eq!(shown(descriptor.name(), &bytes), reflected);
    }
}
