//! Generates the messages and the ttrpc services from `proto/`, in pure Rust:
//! no protoc is run. Beside them a macro that lists every message with its
//! fields, for whoever has to look at all of them by name: reflection can do
//! that too, and costs a binary a third of a megabyte.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use protobuf::descriptor::{DescriptorProto, FieldDescriptorProto};
use protobuf_parse::Parser;

const FILES: [&str; 3] = ["types", "agent", "lifecycle"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("wire");
    std::fs::create_dir_all(&out)?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .include("proto")
        .inputs(sources())
        .rust_protobuf()
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .run()?;
    // An index of our own: the one the generator writes starts with an inner
    // attribute and cannot be included.
    let index: String = FILES
        .iter()
        .flat_map(|file| [(*file).to_string(), format!("{file}_ttrpc")])
        .filter(|module| out.join(format!("{module}.rs")).exists())
        .map(|module| format!("pub mod {module};\n"))
        .collect();
    std::fs::write(out.join("mod.rs"), index)?;
    std::fs::write(out.join("messages.rs"), messages()?)?;
    Ok(())
}

fn sources() -> [String; 3] {
    FILES.map(|file| format!("proto/{file}.proto"))
}

/// The macro that lists the messages.
fn messages() -> Result<String, Box<dyn std::error::Error>> {
    let files = Parser::new()
        .pure()
        .include("proto")
        .inputs(sources())
        .file_descriptor_set()?
        .file;
    let mut list = String::new();
    for file in &files {
        let module = Path::new(file.name())
            .file_stem()
            .and_then(|stem| stem.to_str())
            .ok_or("a file without a name")?;
        for message in &file.message_type {
            if !is_listable(message) {
                return Err(format!("{}: a oneof or a message inside", message.name()).into());
            }
            write!(
                list,
                "            $crate::wire::{module}::{} {{",
                message.name()
            )?;
            for field in &message.field {
                write!(list, " {},", rust_name(field.name()))?;
            }
            list.push_str(" }\n");
        }
    }
    Ok(format!(
        "/// Hands every message of the wire to `$callback!`, as its path and, in\n\
         /// braces, its fields as the generated type names them.\n\
         #[macro_export]\n\
         macro_rules! for_each_message {{\n    ($callback:ident) => {{\n        $callback! {{\n\
         {list}        }}\n    }};\n}}\n"
    ))
}

/// Whether the list has a form for it: all its fields are fields of the type
/// that is generated, and no other type is generated inside it.
fn is_listable(message: &DescriptorProto) -> bool {
    // What stands for `optional` is a oneof, and what for a map a message.
    let plain = |field: &FieldDescriptorProto| !field.has_oneof_index() || field.proto3_optional();
    let mut nested = message.nested_type.iter();
    message.field.iter().all(plain) && nested.all(|nested| nested.options.map_entry())
}

/// As the generator of the messages names it: `type` is the only keyword among
/// the fields, and any other would not compile.
fn rust_name(field: &str) -> &str {
    if field == "type" { "type_" } else { field }
}
