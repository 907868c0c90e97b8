//! Generates the types and services of `cairn/v1/*.proto`, with `bytes` fields as [`bytes::Bytes`] (no copy on
//! receipt), and the descriptor set that server reflection serves.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let protos = ["common", "files", "volumes", "peer", "admin"].map(|name| format!("cairn/v1/{name}.proto"));
    for proto in &protos {
        println!("cargo:rerun-if-changed={proto}");
    }
    tonic_prost_build::configure()
        .bytes(".")
        .file_descriptor_set_path(out.join("cairn_v1.bin"))
        .compile_protos(&protos, &[".".to_string()])?;
    Ok(())
}
