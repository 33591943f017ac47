//! Generates the messages and the ttrpc services from `proto/`, in pure Rust:
//! no protoc is run.

use std::path::PathBuf;

const FILES: [&str; 3] = ["types", "agent", "lifecycle"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("wire");
    std::fs::create_dir_all(&out)?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .include("proto")
        .inputs(FILES.map(|file| format!("proto/{file}.proto")))
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
    Ok(())
}
