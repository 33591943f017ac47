//! The generated descriptors against the published tables of the agent API:
//! name, number, type and label of every field; every message, enum and RPC.

use std::collections::BTreeSet;

use protobuf::descriptor::field_descriptor_proto::Type;
use protobuf::reflect::{
    EnumDescriptor, FieldDescriptor, FileDescriptor, MessageDescriptor, RuntimeFieldType,
    RuntimeType,
};
use protocols::wire::{agent, lifecycle, types};

const MESSAGES: &str = include_str!("wire/messages.tsv");
const ENUMS: &str = include_str!("wire/enums.tsv");
const SERVICES: &str = include_str!("wire/services.tsv");

/// The files that the tables describe.
fn files() -> [&'static FileDescriptor; 2] {
    [types::file_descriptor(), agent::file_descriptor()]
}

fn rows(table: &str) -> BTreeSet<String> {
    table.lines().skip(1).map(str::to_owned).collect()
}

/// The tables name a type of the same package by its last part only.
fn shorten(full_name: &str, package: &str) -> String {
    match full_name.strip_prefix(&format!("{package}.")) {
        Some(rest) => rest.rsplit('.').next().unwrap_or(rest).to_owned(),
        None => full_name.to_owned(),
    }
}

fn type_name(of: &RuntimeType, package: &str) -> String {
    match of {
        RuntimeType::I32 => "int32".into(),
        RuntimeType::I64 => "int64".into(),
        RuntimeType::U32 => "uint32".into(),
        RuntimeType::U64 => "uint64".into(),
        RuntimeType::F32 => "float".into(),
        RuntimeType::F64 => "double".into(),
        RuntimeType::Bool => "bool".into(),
        RuntimeType::String => "string".into(),
        RuntimeType::VecU8 => "bytes".into(),
        RuntimeType::Enum(found) => shorten(found.full_name(), package),
        RuntimeType::Message(found) => shorten(found.full_name(), package),
    }
}

fn field_row(package: &str, message: &MessageDescriptor, field: &FieldDescriptor) -> String {
    // At run time a sint32 or a fixed32 looks like an int32; the wire differs.
    let exact = field.proto().type_();
    assert!(
        !matches!(
            exact,
            Type::TYPE_SINT32
                | Type::TYPE_SINT64
                | Type::TYPE_FIXED32
                | Type::TYPE_FIXED64
                | Type::TYPE_SFIXED32
                | Type::TYPE_SFIXED64
                | Type::TYPE_GROUP
        ),
        "{} of {} is a {exact:?}",
        field.name(),
        message.full_name()
    );
    let (of, label) = match field.runtime_field_type() {
        RuntimeFieldType::Map(key, value) => (
            format!(
                "map<{},{}>",
                type_name(&key, package),
                type_name(&value, package)
            ),
            "single",
        ),
        RuntimeFieldType::Repeated(of) => (type_name(&of, package), "repeated"),
        RuntimeFieldType::Singular(of) if field.proto().proto3_optional() => {
            (type_name(&of, package), "optional")
        }
        RuntimeFieldType::Singular(of) => (type_name(&of, package), "single"),
    };
    format!(
        "{package}\t{}\t{}\t{}\t{of}\t{label}",
        message.name_to_package(),
        field.name(),
        field.number()
    )
}

#[test]
fn every_field_is_the_tables() {
    let mut found = BTreeSet::new();
    for file in files() {
        let package = file.proto().package();
        for message in all_messages(file) {
            for field in message.fields() {
                found.insert(field_row(package, &message, &field));
            }
        }
    }
    assert_same(&found, &rows(MESSAGES));
}

#[test]
fn there_are_the_tables_messages_and_six_empty_ones() {
    let mut wanted: BTreeSet<String> = rows(MESSAGES)
        .iter()
        .map(|row| row.split('\t').take(2).collect::<Vec<_>>().join("."))
        .collect();
    for row in rows(SERVICES) {
        for name in row.split('\t').skip(2) {
            let full = if name.contains('.') {
                name.to_owned()
            } else {
                format!("grpc.{name}")
            };
            if !full.starts_with("google.") {
                wanted.insert(full);
            }
        }
    }
    let found: BTreeSet<String> = files()
        .into_iter()
        .flat_map(all_messages)
        .map(|message| message.full_name().to_owned())
        .collect();
    assert_same(&found, &wanted);
    assert_eq!(found.len(), 113);
}

#[test]
fn every_enum_value_is_the_tables() {
    let mut found = BTreeSet::new();
    for file in files() {
        let package = file.proto().package();
        let nested = all_messages(file)
            .into_iter()
            .flat_map(|message| message.nested_enums().collect::<Vec<_>>());
        let enums: Vec<EnumDescriptor> = file.enums().chain(nested).collect();
        for one in enums {
            let full = one.full_name();
            let name = full.strip_prefix(&format!("{package}.")).unwrap_or(full);
            for value in one.values() {
                found.insert(format!(
                    "{package}\t{name}\t{}\t{}",
                    value.name(),
                    value.value()
                ));
            }
        }
    }
    assert_same(&found, &rows(ENUMS));
}

#[test]
fn every_rpc_is_the_tables_and_none_streams() {
    let mut found = BTreeSet::new();
    let file = agent::file_descriptor();
    for service in file.services() {
        for method in service.methods() {
            let proto = method.proto();
            assert!(!proto.client_streaming() && !proto.server_streaming());
            let name = |full: &str| {
                full.trim_start_matches('.')
                    .trim_start_matches("grpc.")
                    .to_owned()
            };
            found.insert(format!(
                "grpc.{}\t{}\t{}\t{}",
                service.proto().name(),
                proto.name(),
                name(proto.input_type()),
                name(proto.output_type())
            ));
        }
    }
    assert_same(&found, &rows(SERVICES));
    assert_eq!(found.len(), 44);
}

#[test]
fn the_lifecycle_service_streams_no_bulk_data_over_ttrpc() {
    let file = lifecycle::file_descriptor();
    let methods: Vec<String> = file
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|method| {
            assert!(!method.proto().client_streaming() && !method.proto().server_streaming());
            method.proto().name().to_owned()
        })
        .collect();
    assert_eq!(
        methods,
        [
            "Quiesce", "Thaw", "Release", "Exec", "Copy", "Forward", "Logs", "Events"
        ]
    );
}

fn all_messages(file: &FileDescriptor) -> Vec<MessageDescriptor> {
    let mut all = Vec::new();
    let mut open: Vec<MessageDescriptor> = file.messages().collect();
    while let Some(message) = open.pop() {
        open.extend(
            message
                .nested_messages()
                .filter(|nested| !nested.proto().options.map_entry()),
        );
        all.push(message);
    }
    all
}

fn assert_same(found: &BTreeSet<String>, wanted: &BTreeSet<String>) {
    let missing: Vec<_> = wanted.difference(found).collect();
    let surplus: Vec<_> = found.difference(wanted).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "missing: {missing:#?}\nsurplus: {surplus:#?}"
    );
}
