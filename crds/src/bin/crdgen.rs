//! Writes the generated CRD files into the repository: `cargo run -p cairn-crds`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let repository =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lives in the repository");
    for file in cairn_crds::generate::files() {
        let path = repository.join(&file.path);
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, &file.text));
        if let Err(error) = written {
            eprintln!("cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("{}", file.path);
    }
    ExitCode::SUCCESS
}
