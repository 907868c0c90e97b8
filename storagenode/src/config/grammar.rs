//! The settings by name, and the command line's grammar.

use super::flag_of;

/// One setting, as people see it.
pub(super) struct Setting {
    pub name: &'static str,
    pub value: &'static str,
    pub help: &'static str,
    pub default: Option<&'static str>,
}

const fn setting(
    name: &'static str,
    value: &'static str,
    default: Option<&'static str>,
    help: &'static str,
) -> Setting {
    Setting { name, value, help, default }
}

pub(super) const SETTINGS: &[Setting] = &[
    setting("CLUSTER_NAME", "NAME", Some("cairn"), "The cluster this node belongs to"),
    setting("NODE_NAME", "NAME", None, "This node's name, for ever [default: the host name]"),
    setting("ZONE", "NAME", Some("default"), "Failure domain: copies of a file go to different zones"),
    setting("DATA_DIR", "FOLDER", Some("/data"), "Where this node keeps its chunks"),
    setting(
        "NEW_DISK",
        "NODE",
        Some("false"),
        "Name of the node (or true) whose disk is lost, for one start: DATA_DIR may be empty, and what it held is fetched from others",
    ),
    setting(
        "DATABASE_URL",
        "URL",
        None,
        "Metadata: etcd://host,host,host/prefix, or embedded:///folder for one node alone",
    ),
    setting("ETCD_CA_FILE", "FILE", None, "CA of an etcd with TLS (as ?ca= in DATABASE_URL)"),
    setting("ETCD_CERT_FILE", "FILE", None, "Certificate to show to etcd, if it asks for one"),
    setting("ETCD_KEY_FILE", "FILE", None, "Its key"),
    setting("GRPC_PORT", "PORT", Some("50051"), "Port for gRPC, of clients and of other nodes; 0 picks one"),
    setting("HTTP_PORT", "PORT", Some("8080"), "Port for HTTPS; 0 picks one"),
    setting("BIND_HOST", "HOST", Some("0.0.0.0"), "Address to listen on"),
    setting(
        "ADVERTISE_HOST",
        "HOST",
        None,
        "Name by which other nodes reach this one; must be in its certificate [default: the host name]",
    ),
    setting("ADVERTISE_PORT", "PORT", None, "Port by which other nodes reach this one [default: GRPC_PORT]"),
    setting("TLS_CERT_FILE", "FILE", None, "This node's certificate (PEM; subject O=cairn:node)"),
    setting("TLS_KEY_FILE", "FILE", None, "Its key (PEM)"),
    setting("TLS_CA_FILE", "FILE", None, "The cluster's CA (PEM)"),
    setting("KEK_FILE", "FILE", None, "The key-encryption key: 32 random bytes, base64, hexadecimal or raw"),
    setting(
        "CLIENT_TOKENS_FILE",
        "FILE",
        None,
        "Who may connect with a token: lines of NAME SHA256 [EXPIRES]",
    ),
    setting(
        "EXPECTED_NODES",
        "COUNT",
        Some("1"),
        "Nodes to wait for before files are placed for the first time",
    ),
    setting(
        "LEASE_SECONDS",
        "SECONDS",
        Some("10"),
        "A node that has not been heard of for so long counts as down (2 to 300)",
    ),
    setting(
        "REPAIR_SECONDS",
        "SECONDS",
        Some("5"),
        "Between comparisons with other nodes, at rest (1 to 3600)",
    ),
    setting(
        "COMPARE_SECONDS",
        "SECONDS",
        Some("30"),
        "Between comparisons of the metadata with the disks, at rest; longer where one takes long (1 to 86400)",
    ),
    setting(
        "SCRUB_SECONDS",
        "SECONDS",
        Some("1209600"),
        "In which a node reads all of its disk again, to find what has rotted; 0 for never (0 to 31536000)",
    ),
    setting(
        "COMPACT_SECONDS",
        "SECONDS",
        Some("600"),
        "Between looks for garbage on the disk, which is then given back; 0 for never (0 to 31536000)",
    ),
    setting("TICK_SECONDS", "SECONDS", Some("60"), "Length of a tick, by which ages are counted (1 to 3600)"),
    setting(
        "COLLECT_AFTER_TICKS",
        "COUNT",
        Some("15"),
        "Ticks that deleted content rests, for downloads that have begun (1 to 100000)",
    ),
    setting(
        "SWEEP_TICKS",
        "COUNT",
        Some("360"),
        "Ticks between sweeps for what uploads left behind (2 to 100000)",
    ),
    setting(
        "QUARANTINE_TICKS",
        "COUNT",
        Some("1440"),
        "Ticks that what a sweep finds rests before it is removed (1 to 1000000)",
    ),
    setting(
        "TOMBSTONE_TICKS",
        "COUNT",
        Some("10080"),
        "Ticks that a node remembers deletions, for nodes that were away (7 to 10000000)",
    ),
    setting("CAPACITY", "BYTES", None, "How much of the disk to use, such as 100Gi [default: all of it]"),
    setting(
        "LOG",
        "FILTER",
        Some("info"),
        "What to log: error, warn, info, debug, or a filter such as info,cairn_node=debug",
    ),
    setting("LOG_FORMAT", "FORMAT", Some("text"), "text or json"),
];

/// What concerns a metadata store, a disk or a volume that is not what it was.
fn recover() -> clap::Command {
    let without = clap::Arg::new("without-node")
        .long("without-node")
        .value_name("NAME")
        .action(clap::ArgAction::Append)
        .help("A node that is gone for ever; may be given several times");
    let accept_disk = clap::Arg::new("accept-disk")
        .long("accept-disk")
        .value_name("NODE")
        .conflicts_with("without-node")
        .help(
            "Take the disk of this stopped node as it is, though it had held more; nothing else is accepted",
        );
    let put_back = clap::Arg::new("put-back")
        .long("put-back")
        .value_name("VOLUME")
        .conflicts_with_all(["without-node", "accept-disk"])
        .help("Put back this volume, which the metadata store has lost, with the key that this node keeps; nothing else is done");
    clap::Command::new("recover")
        .about("Accepts a metadata store that was restored from an older copy, so that deleting goes on; or an older disk")
        .after_help(
            "Nodes that have seen the metadata store further than it is delete nothing, and `cairn status` says so. Restore a \
             newer copy if there is one; if not, run this with the environment of any node (it needs DATABASE_URL, and \
             DATA_DIR for volumes that the copy lacks: every node keeps their keys, too).\n\
             Files stored after the copy was made are lost; of files deleted since then, names come back without content, \
             and `cairn status` lists them.\n\
             A node alone refuses a disk that is older than it was. If there is no newer one, stop the node and run this with \
             --accept-disk: `cairn status` then lists the files that are lost.",
        )
        .args([without, accept_disk, put_back])
}

/// What concerns clients' tokens.
fn token() -> clap::Command {
    let new_token = clap::Command::new("new")
        .about("Makes a token, adds its SHA-256 to CLIENT_TOKENS_FILE, and prints the token: it is stored nowhere")
        .after_help(
            "Nodes look at the file every few seconds: no restart is needed. To take a token back, remove its line.\n\
             Without CLIENT_TOKENS_FILE, the line is printed instead, to be added to the nodes' file by hand.",
        )
        .args([
            clap::Arg::new("name").value_name("NAME").required(true).help("Whose it is; shown in logs"),
            clap::Arg::new("expires")
                .long("expires")
                .value_name("WHEN")
                .required(true)
                .help("90d, 12h, 2027-06-30, 2027-06-30T18:00:00Z, or never"),
            clap::Arg::new("client-tokens-file")
                .long("client-tokens-file")
                .value_name("FILE")
                .help("The nodes' file of tokens [default: CLIENT_TOKENS_FILE of the environment or .env]"),
        ]);
    clap::Command::new("token")
        .about("Clients' tokens")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(new_token)
}

/// The command line's grammar, for help and parsing.
pub fn grammar() -> clap::Command {
    let settings = SETTINGS.iter().map(|setting| {
        let env = format!("[env: {}]", setting.name);
        let help = match setting.default {
            Some(default) => format!("{} {env} [default: {default}]", setting.help),
            None => format!("{} {env}", setting.help),
        };
        clap::Arg::new(setting.name).long(flag_of(setting.name)).value_name(setting.value).help(help)
    });
    let file = clap::Arg::new("ENV_FILE")
        .long("env-file")
        .value_name("FILE")
        .help("File of NAME=VALUE lines, for what neither flags nor the environment set [default: .env, if it exists]");
    let folder =
        clap::Arg::new("folder").long("folder").value_name("FOLDER").required(true).help("Where they go");
    let hosts = clap::Arg::new("hosts")
        .long("hosts")
        .value_name("HOST,…")
        .value_delimiter(',')
        .help("Names and addresses of the nodes; localhost is always included");
    let etcd_hosts = clap::Arg::new("etcd-hosts")
        .long("etcd-hosts")
        .value_name("HOST,…")
        .value_delimiter(',')
        .help("The same for an etcd that is to have a certificate of this CA");
    let cluster = clap::Arg::new("cluster")
        .long("cluster")
        .value_name("NAME")
        .default_value("cairn")
        .help("Name of the cluster");
    let init = clap::Command::new("init-secrets")
        .about("Makes CA, certificates, key-encryption key and a client's token where they are missing; changes nothing that exists")
        .args([folder, hosts, etcd_hosts, cluster]);
    let verify = clap::Command::new("verify")
        .about("Reads every chunk of a stopped node, and says what is damaged. Exit codes: 0 all is whole, 1 not")
        .after_help("Nothing is mended: start the node, and what it finds damaged it fetches from other nodes.")
        .arg(
            clap::Arg::new("data-dir")
                .long("data-dir")
                .value_name("FOLDER")
                .help("The node's folder [default: DATA_DIR of the environment or .env, else /data]"),
        );
    clap::Command::new("cairn-node")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A storage node of Cairn. Without a command, it runs the node.")
        .after_help("Every setting can be a flag, an environment variable, or a line of the .env file, in this order.")
        .args_conflicts_with_subcommands(true)
        .args(settings)
        .arg(file)
        .subcommand(init)
        .subcommand(recover())
        .subcommand(verify)
        .subcommand(token())
}
