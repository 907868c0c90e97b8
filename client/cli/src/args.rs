//! Everything that can be typed, and its help.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::address::Address;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage: an option, a name or a range that cannot be
  3  not found: no such file, volume or node
  4  refused because of what is there: a condition did not hold, it exists, or it changed meanwhile
  5  not allowed: no or wrong token, or a certificate that is not trusted
  6  unavailable: try again later; of `status`: files are lost, or the metadata store is an older copy
  7  some files of several failed; the others are done

Errors go to standard error: what happened, and what to do about it; with --output json as JSON, like
everything else, also mistakes in the command line.

Environment:
  CAIRN_CONTEXT, CAIRN_ENDPOINT, CAIRN_CA_FILE, CAIRN_TOKEN, CAIRN_TOKEN_FILE and CAIRN_SERVER_NAME
  say which cluster is meant, in place of a context or of parts of it. CAIRN_CONFIG is the file of
  contexts (else ~/.config/cairn/config.yaml).";

/// Stores files in a Cairn cluster and gets them back.
///
/// Files live in volumes; VOLUME/PATH names one, as in files/photos/lake.jpg. Any node of the cluster serves any file.
#[derive(Debug, Parser)]
#[command(name = "cairn", version, after_help = EXIT_CODES, max_term_width = 110)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON document, with names that stay.
    Json,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Which cluster, and how to show it")]
pub struct Common {
    /// The context to use, instead of the current one
    #[arg(long, global = true, env = "CAIRN_CONTEXT", value_name = "NAME", hide_env = true)]
    pub context: Option<String>,
    /// Nodes to connect to, as https://HOST:PORT; several with commas
    #[arg(
        long,
        global = true,
        env = "CAIRN_ENDPOINT",
        value_name = "URL",
        value_delimiter = ',',
        hide_env = true
    )]
    pub endpoint: Vec<String>,
    /// The CA certificate that signs the nodes' certificates, in PEM form
    #[arg(long, global = true, env = "CAIRN_CA_FILE", value_name = "FILE", hide_env = true, value_parser = parse_path)]
    pub ca_file: Option<PathBuf>,
    /// A file with the token to show; or set CAIRN_TOKEN to the token itself
    #[arg(long, global = true, env = "CAIRN_TOKEN_FILE", value_name = "FILE", hide_env = true, value_parser = parse_path)]
    pub token_file: Option<PathBuf>,
    /// The name in the nodes' certificates, if it is not the one connected to (through a tunnel)
    #[arg(long, global = true, env = "CAIRN_SERVER_NAME", value_name = "NAME", hide_env = true)]
    pub server_name: Option<String>,
    /// How long to try a call, or a transfer that stands still, such as 30s or 5m [default: 60s; of `status --wait-settled`: 10m]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// How to print
    #[arg(long, short, global = true, value_enum, default_value = "text", value_name = "FORMAT")]
    pub output: Format,
    /// Print nothing but errors and what was asked for: no progress, no summary
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Say on standard error what is tried again, and why
    #[arg(long, global = true)]
    pub verbose: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Put(Put),
    Get(Get),
    Cp(Cp),
    Mv(Mv),
    Ls(Ls),
    Du(Du),
    Rm(Rm),
    Stat(Stat),
    /// List the volumes
    Volumes,
    Mkvol(Mkvol),
    Rmvol(Rmvol),
    Status(Status),
    /// Stop or start a node of a cluster run by `cairn-operator local`
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// The clusters that this machine knows, and which one is meant
    Context {
        #[command(subcommand)]
        command: ContextCommand,
    },
}

/// Upload files and folders
///
/// A file goes to VOLUME/PATH; with only VOLUME, or a "/" at the end, it goes there under its own name. The content of
/// a folder goes below VOLUME/PATH, every file under the name it has in the folder. A file is stored whole or not at all,
/// and what was acknowledged is safe on a majority of its nodes.
///
/// A folder's files that are there already, equal in size, BLAKE3 digest and content type, are skipped: so a transfer
/// that broke off is taken up again by the same command. Symbolic links in a folder are left out with a warning and never
/// followed; empty folders are not stored.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cairn put report.pdf files                  stores files/report.pdf
  cairn put report.pdf files/2026/may.pdf
  cairn put ./photos files/photos             every file of the folder, below files/photos/
  cairn put a.txt b.txt files/notes/
  tar c . | cairn put - files/backup.tar      from standard input, of any length")]
pub struct Put {
    /// Files and folders of this machine; "-" is standard input
    #[arg(required = true, value_name = "LOCAL")]
    pub sources: Vec<PathBuf>,
    /// Where to: VOLUME or VOLUME/PATH
    #[arg(value_name = "VOLUME[/PATH]")]
    pub target: Address,
    /// Refuse to replace a file that is there
    #[arg(long, conflicts_with = "if_match")]
    pub if_absent: bool,
    /// Only replace the version with this etag (of a single file)
    #[arg(long, value_name = "ETAG")]
    pub if_match: Option<String>,
    /// Send a folder's files also where the same is there already
    #[arg(long)]
    pub force: bool,
    /// The content type to remember, such as text/plain
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,
    /// Files at the same time
    #[arg(long, short, default_value = "8", value_name = "N", value_parser = parse_jobs)]
    pub jobs: NonZeroUsize,
}

/// Download a file, or all files below a path
///
/// A file goes to LOCAL, or into it if LOCAL is a folder or ends in "/". Files below VOLUME/PATH go right below LOCAL, or
/// below LOCAL/NAME if LOCAL ends in "/" or is left out. Each file appears when it is complete and verified, never half.
///
/// In a volume, a name can be that of a file and of a folder. VOLUME/PATH is the file then, VOLUME/PATH/ the folder. On this
/// machine a path cannot be both: files of a tree that could not be written for that reason are named, and the exit code is 7.
///
/// Of a folder, files that are at LOCAL already, equal in size and BLAKE3 digest, are skipped: so a transfer that broke
/// off is taken up again by the same command.
///
/// To standard output goes nothing but the content, verified at its end: if the exit code is not 0, do not use it. The
/// document of `--output json` goes to standard error then.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cairn get files/report.pdf                  into this folder
  cairn get files/photos ./back               every file below files/photos/, into ./back
  cairn get files/photos/ ./back              the same, also if there is a file files/photos
  cairn get files ./everything
  cairn get files/backup.tar - | tar x        to standard output
  cairn get files/big.bin part --offset 1000 --length 500")]
pub struct Get {
    /// What: VOLUME/PATH of a file, or of a folder; VOLUME is all of it
    #[arg(value_name = "VOLUME[/PATH]")]
    pub source: Address,
    /// Where to; "-" is standard output [default: this folder]
    #[arg(value_name = "LOCAL")]
    pub target: Option<PathBuf>,
    /// First byte wanted (of a single file)
    #[arg(long, value_name = "BYTE")]
    pub offset: Option<u64>,
    /// Bytes wanted (of a single file)
    #[arg(long, value_name = "BYTES")]
    pub length: Option<u64>,
    /// Fetch a folder's files also where the same is there already
    #[arg(long)]
    pub force: bool,
    /// While the metadata store cannot be reached, take the file as a node last knew it (of a single file)
    #[arg(long)]
    pub allow_stale: bool,
    /// Files at the same time
    #[arg(long, short, default_value = "8", value_name = "N", value_parser = parse_jobs)]
    pub jobs: NonZeroUsize,
}

/// Copy a file, or all files below a path, within the cluster
///
/// A file goes to TARGET; if that is only a VOLUME, or ends in "/", it goes there under its own name. The files of a folder
/// go below TARGET, or below TARGET/NAME if TARGET is only a VOLUME or ends in "/". A whole volume has no name to take along.
///
/// The content is read through this machine and sealed anew with the key of the volume it goes to; its BLAKE3 digest is
/// checked at both ends. Each file appears whole or not at all. A folder's files that are there already, equal in size,
/// digest and content type, are skipped.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cairn cp files/report.pdf archive           stores archive/report.pdf
  cairn cp files/report.pdf files/2026/may.pdf
  cairn cp files/photos archive/photos        every file below files/photos/
  cairn cp files archive/files                every file of the volume, below archive/files/")]
pub struct Cp {
    /// What: VOLUME/PATH of a file, or of a folder; VOLUME is all of it
    #[arg(value_name = "SOURCE")]
    pub source: Address,
    /// Where to: VOLUME or VOLUME/PATH
    #[arg(value_name = "TARGET")]
    pub target: Address,
    /// Refuse to replace a file that is there
    #[arg(long, conflicts_with = "if_match")]
    pub if_absent: bool,
    /// Only replace the version with this etag (of a single file)
    #[arg(long, value_name = "ETAG")]
    pub if_match: Option<String>,
    /// Copy a folder's files also where the same is there already
    #[arg(long)]
    pub force: bool,
    /// Files at the same time
    #[arg(long, short, default_value = "8", value_name = "N", value_parser = parse_jobs)]
    pub jobs: NonZeroUsize,
}

/// Move a file, or all files below a path, to another name
///
/// Names mean the same as with `cairn cp`. Within a volume a file moves at one moment, without its content being read: it has
/// the old name or the new one, never both and never neither; a file that has the new name is replaced. A folder is moved file by
/// file, and what broke off is taken up again by the same command. Into another volume, a file is copied, then deleted.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cairn mv files/report.pdf files/2026/may.pdf
  cairn mv files/report.pdf files/2026/       under its own name
  cairn mv files/photos files/2026/photos     every file below files/photos/, one by one
  cairn mv files/photos archive/              into another volume: copied, then deleted")]
pub struct Mv {
    /// What: VOLUME/PATH of a file, or of a folder; VOLUME is all of it
    #[arg(value_name = "SOURCE")]
    pub source: Address,
    /// Where to: VOLUME or VOLUME/PATH
    #[arg(value_name = "TARGET")]
    pub target: Address,
    /// Refuse to replace a file that is there
    #[arg(long)]
    pub if_absent: bool,
    /// Files at the same time
    #[arg(long, short, default_value = "8", value_name = "N", value_parser = parse_jobs)]
    pub jobs: NonZeroUsize,
}

/// List files, or the volumes
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cairn ls                                    the volumes
  cairn ls files/photos
  cairn ls files --recursive --output json")]
pub struct Ls {
    /// VOLUME or VOLUME/PATH; nothing lists the volumes
    #[arg(value_name = "VOLUME[/PATH]")]
    pub source: Option<Address>,
    /// Everything below, not only one level
    #[arg(long, short)]
    pub recursive: bool,
    /// Also each file's etag
    #[arg(long, short)]
    pub long: bool,
}

/// Sum up what files take, by folder or by volume
///
/// SIZE is what the files hold. STORED is what that takes on all disks together when every copy is there: each copy
/// has the content and, for every 64 KiB of it or part of that, a tag of 16 bytes that seals it (about 0.03 %). The nodes' own
/// records, and content that is deleted and not yet collected, come on top. Every file is listed for it, which takes a
/// while where there are millions; `cairn volumes` shows what was counted last.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cairn du                                    each volume, and all together
  cairn du files                              each folder of the volume, and all together
  cairn du files/photos --output json         exact numbers")]
pub struct Du {
    /// VOLUME or VOLUME/PATH; nothing means all volumes
    #[arg(value_name = "VOLUME[/PATH]")]
    pub source: Option<Address>,
}

/// Delete files
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cairn rm files/report.pdf
  cairn rm --recursive files/photos           every file below files/photos/
  cairn rm --recursive files/                 every file of the volume; the volume stays")]
pub struct Rm {
    /// VOLUME/PATH of files
    #[arg(required = true, value_name = "VOLUME/PATH")]
    pub sources: Vec<Address>,
    /// Also everything below the path
    #[arg(long, short)]
    pub recursive: bool,
    /// Only the version with this etag (of a single file)
    #[arg(long, value_name = "ETAG", conflicts_with = "recursive")]
    pub if_match: Option<String>,
    /// Files at the same time
    #[arg(long, short, default_value = "8", value_name = "N", value_parser = parse_jobs)]
    pub jobs: NonZeroUsize,
}

/// Show what is known of a file, or of a volume
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cairn stat files/report.pdf
  cairn stat --chunks files/report.pdf        where each piece of it is
  cairn stat files                            the volume")]
pub struct Stat {
    #[arg(value_name = "VOLUME[/PATH]")]
    pub source: Address,
    /// Also say which nodes hold each chunk
    #[arg(long)]
    pub chunks: bool,
    /// While the metadata store cannot be reached, show the file as a node last knew it
    #[arg(long)]
    pub allow_stale: bool,
}

/// Create a volume
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cairn mkvol files
  cairn mkvol scratch --copies 1 --chunk-size 1MiB")]
pub struct Mkvol {
    /// 1 to 63 of a-z, 0-9 and "-"
    pub name: String,
    /// Copies of each chunk, 1 to 7, each in a zone of its own [default: 3, or as many as there are zones (or nodes, if all
    /// are in one zone)]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=7))]
    pub copies: Option<u32>,
    /// Size of the pieces files are cut into: 64KiB to 16MiB, a multiple of 64KiB [default: 4MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub chunk_size: Option<u32>,
}

/// Delete a volume
#[derive(Debug, Args)]
pub struct Rmvol {
    pub name: String,
    /// Also if there are files in it: they are deleted with it, for good
    #[arg(long)]
    pub with_files: bool,
}

/// Show the cluster: its nodes, and whether everything has all its copies
///
/// The exit code is 6 if files are lost, or if the metadata store is an older copy that nobody has accepted: the output says so,
/// and what to do. Copies that are still being made are no failure.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cairn status
  cairn status --wait-settled --timeout 5m    returns when every copy of everything is where it should be")]
pub struct Status {
    /// Wait until every placement group is settled: all its nodes are there and hold everything
    #[arg(long)]
    pub wait_settled: bool,
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Drop a node without warning, as if its machine had lost power
    Stop { name: String },
    /// Start a node that was stopped
    Start { name: String },
}

#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List the contexts; "*" marks the current one
    List,
    /// Make a context the current one
    Use { name: String },
    /// Show a context, without its secrets
    Show {
        /// [default: the current one]
        name: Option<String>,
    },
    /// Write a context from the options given, and make it the current one if there is none
    ///
    /// The token is taken from CAIRN_TOKEN, or named by --token-file.
    #[command(after_help = "Example:
  cairn context set office --endpoint https://n1:50051,https://n2:50051 --ca-file ca.crt --token-file token")]
    Set { name: String },
    /// Remove a context
    Remove { name: String },
}

/// Unlike clap's own, takes an empty path: an empty variable means the same as none.
fn parse_path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}

fn parse_jobs(text: &str) -> Result<NonZeroUsize, String> {
    match text.parse::<NonZeroUsize>() {
        Ok(jobs) if jobs.get() <= 256 => Ok(jobs),
        _ => Err("use a number from 1 to 256".to_owned()),
    }
}

/// `30s`, `5m`, `1h`, `250ms`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "use a number and a unit, such as 30s, 5m or 1h".to_owned();
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let duration = match &text[digits..] {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3_600).map(Duration::from_secs),
        _ => None,
    };
    duration.filter(|time| (1..=86_400_000).contains(&time.as_millis())).ok_or_else(wrong)
}

/// `65536`, `64KiB` (or `64Ki`), `4MiB`; not 0.
pub fn parse_size(text: &str) -> Result<u32, String> {
    let wrong = || "use a number of bytes over 0, or one with KiB or MiB, such as 4MiB".to_owned();
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let number: u32 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match &text[digits..] {
        "" | "B" => 1,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).filter(|size| *size > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn usual_lines_are_understood() {
        for line in [
            "cairn put a b files/x/ -j 3 --if-absent",
            "cairn get files/photos ./back --output json -q",
            "cairn put photos files --force",
            "cairn get files/photos - --force",
            "cairn cp files/a archive/ -j 3 --if-absent --force",
            "cairn mv files/a files/b -j 3 --if-absent",
            "cairn du",
            "cairn du files/photos",
            "cairn ls",
            "cairn ls -rl files",
            "cairn rm -r files/photos files/notes",
            "cairn stat --chunks files/a",
            "cairn mkvol files --copies 3 --chunk-size 4MiB",
            "cairn rmvol files --with-files",
            "cairn status --wait-settled --timeout 5m",
            "cairn node stop node-1",
            "cairn context use laptop",
            "cairn --endpoint https://a:1,https://b:2 volumes",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        assert!(parse("cairn volumes --token-file= --ca-file=").is_ok(), "as from empty variables");
        let both = parse("cairn volumes --endpoint a,b").unwrap();
        assert_eq!(both.common.endpoint, ["a", "b"]);
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for line in [
            "cairn",
            "cairn fly",
            "cairn put a",
            "cairn put a FILES/x",
            "cairn put a files/../x",
            "cairn put a files --if-absent --if-match 3",
            "cairn get files -j 0",
            "cairn cp files/a",
            "cairn cp files/a ./here",
            "cairn cp files/a b --if-absent --if-match 3",
            "cairn mv files/a",
            "cairn mv files/a ./here",
            "cairn du files//a",
            "cairn mkvol files --copies 8",
            "cairn mkvol files --copies 0",
            "cairn mkvol files --chunk-size 0",
            "cairn mkvol files --chunk-size big",
            "cairn status --timeout 0s",
            "cairn ls --output xml",
        ] {
            let error = parse(line).err().unwrap_or_else(|| panic!("{line} is wrong"));
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn times_and_sizes() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert!(
            ["", "s", "-1s", "1.5s", "25h", "99999999999999999999s", "1d"]
                .iter()
                .all(|t| parse_duration(t).is_err())
        );
        assert_eq!(parse_size("65536"), Ok(65_536));
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("4Mi"), Ok(4 << 20));
        assert!(["", "0", "0KiB", "KiB", "4GiB", "5000MiB", "4 MiB"].iter().all(|t| parse_size(t).is_err()));
    }

    #[test]
    fn the_help_has_exit_codes_and_examples() {
        let mut command = Arguments::command();
        assert!(command.render_help().to_string().contains("Exit codes:"));
        for name in ["put", "get", "cp", "mv", "ls", "rm", "stat", "mkvol", "status"] {
            let help = command.find_subcommand_mut(name).unwrap().render_long_help().to_string();
            assert!(help.contains("Examples:"), "{name}");
        }
    }
}
