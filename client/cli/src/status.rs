//! `cairn status`, and `cairn node stop|start`.

use std::time::{Duration, Instant};

use cairn_client::{Client, NodeState, Readable, StatusResponse};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::args::Status;
use crate::failure::{Exit, Failure};
use crate::output::{Output, count, shown, size, table};

const DEFAULT_WAIT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(500);
/// What is said while the store is one that was restored and nobody has accepted it.
const RESTORED: &str = "the metadata store is an older copy of what it was, and nothing is deleted from the disks until that is decided";
const RESTORED_HELP: &str =
    "restore a newer copy if there is one; if not, accept this one with `cairn-node recover`";

#[derive(Serialize)]
struct Document {
    cluster: String,
    cluster_id: String,
    settled: bool,
    placement_groups: GroupsDocument,
    nodes: Vec<NodeDocument>,
    coordinator: String,
    answered_by: String,
    map_generation: u64,
    intent_generation: u64,
    collecting: u64,
    /// What the metadata names has been compared with what the present disks hold.
    compared: bool,
    /// Whether every file can be read now: `all`, `not_all`, or `being_checked`.
    readable: &'static str,
    /// Placement groups with content that files name and no live node holds.
    missing: u32,
    /// The metadata store is an older copy of what it was.
    metadata_restored: bool,
    lost_files: u64,
    /// The first of them, as volume/path.
    lost: Vec<String>,
}

#[derive(Serialize)]
struct GroupsDocument {
    total: u32,
    settled: u32,
    degraded: u32,
    unavailable: u32,
}

#[derive(Serialize)]
struct NodeDocument {
    name: String,
    zone: String,
    address: String,
    state: &'static str,
    capacity_bytes: u64,
    used_bytes: u64,
    chunks: u64,
    placement_groups: u32,
    settled_placement_groups: u32,
    version: String,
    /// Why it did not start when it last tried.
    #[serde(skip_serializing_if = "String::is_empty")]
    refusal: String,
    /// What somebody should look at, although it runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

pub async fn run(
    client: &Client,
    status: Status,
    timeout: Option<Duration>,
    output: &Output,
) -> Result<Exit, Failure> {
    let Status { wait_settled } = status;
    let found = if wait_settled {
        wait(client, timeout.unwrap_or(DEFAULT_WAIT), output).await?
    } else {
        client.status().await?
    };
    output.answer(&document(&found), || describe(&found));
    Ok(exit(&found))
}

/// Scripts that ask are told of what somebody has to look at. Copies that are still being made are none of it.
fn exit(status: &StatusResponse) -> Exit {
    if status.metadata_restored || status.lost_files > 0 { Exit::Unavailable } else { Exit::Ok }
}

/// Asks again and again until everything is settled, or cannot be any more. A node that does not answer meanwhile is no
/// reason to give up.
async fn wait(client: &Client, limit: Duration, output: &Output) -> Result<StatusResponse, Failure> {
    let bar = output.shows_progress().then(ProgressBar::new_spinner);
    let deadline = Instant::now() + limit;
    loop {
        let mut lost = false;
        let why = match client.status().await {
            Ok(found) if is_settled(&found) => {
                if let Some(bar) = bar {
                    bar.finish_and_clear();
                }
                return Ok(found);
            }
            Ok(found) => {
                if let Some((cause, help)) = hopeless(&found) {
                    return Err(Failure::unavailable(cause, help));
                }
                lost = found.lost_files > 0;
                if lost { in_one_line(&health(&found)) } else { summary(&found) }
            }
            Err(error) if error.is_transient() => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        if Instant::now() + POLL > deadline {
            return Err(Failure::unavailable(
                format!("not settled after {} s: {why}", limit.as_secs()),
                unsettled_help(lost),
            ));
        }
        if let Some(bar) = &bar {
            bar.set_message(shown(&why));
            bar.tick();
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A text with a line for each name, for an error's one line.
fn in_one_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim);
    let first = lines.next().unwrap_or_default();
    let names: Vec<&str> = lines.collect();
    if names.is_empty() { first.to_owned() } else { format!("{first} {}", names.join(", ")) }
}

/// What to do about a cluster that does not settle. With lost files it never will, so waiting longer is no advice.
fn unsettled_help(lost: bool) -> &'static str {
    match lost {
        true => "upload these files again, or remove them; what no disk has cannot settle",
        false => "see `cairn status` for nodes that are down, and wait longer with --timeout",
    }
}

/// Why no waiting would help, and what would.
fn hopeless(status: &StatusResponse) -> Option<(String, &'static str)> {
    if status.metadata_restored {
        return Some((format!("it cannot settle: {RESTORED}"), RESTORED_HELP));
    }
    is_lost_for_good(status).then(|| {
        let cause = format!("it cannot settle: {}", in_one_line(&health(status)));
        (cause, unsettled_help(true))
    })
}

/// Every placement group has all its nodes, and each of them holds everything. While the metadata store is an older copy,
/// nobody knows what everything is.
fn is_settled(status: &StatusResponse) -> bool {
    !status.metadata_restored
        && status.placement_groups > 0
        && status.settled == status.placement_groups
        && status.degraded == 0
        && status.unavailable == 0
}

/// Files are lost, and no node is away that could bring them back. Right after a change nothing is certain.
fn is_lost_for_good(status: &StatusResponse) -> bool {
    status.lost_files > 0
        && status.readable() == Readable::NotAll
        && status.nodes.iter().all(|node| node.state() == NodeState::NodeLive)
}

fn summary(status: &StatusResponse) -> String {
    let mut text =
        format!("{} of {} settled", status.settled, count(status.placement_groups.into(), "placement group"));
    if status.degraded > 0 {
        text += &format!(", {} degraded", status.degraded);
    }
    if status.unavailable > 0 {
        text += &format!(", {} unavailable", status.unavailable);
    }
    text
}

fn describe(status: &StatusResponse) -> String {
    let titles = ["NODE", "ZONE", "STATE", "USED", "CAPACITY", "CHUNKS", "GROUPS", "SETTLED", "ADDRESS"];
    let rows = status.nodes.iter().map(|node| {
        vec![
            shown(&node.name),
            shown(&node.zone),
            state_name(node.state()).to_owned(),
            size(node.used_bytes),
            size(node.capacity_bytes),
            node.chunks.to_string(),
            node.placement_groups.to_string(),
            node.settled_placement_groups.to_string(),
            shown(&node.address),
        ]
    });
    let rows: Vec<Vec<String>> = std::iter::once(titles.map(str::to_owned).to_vec()).chain(rows).collect();
    let live = status.nodes.iter().filter(|node| node.state() == NodeState::NodeLive).count();
    let mut text = match status.metadata_restored {
        true => format!("METADATA RESTORED: {RESTORED}; {RESTORED_HELP}\n"),
        false => String::new(),
    };
    text += &format!(
        "cluster {}: {live} of {} live; {}\n{}\n\n{}",
        shown(&status.cluster),
        count(status.nodes.len() as u64, "node"),
        summary(status),
        health(status),
        table(&rows, &[3, 4, 5, 6, 7])
    );
    for node in status.nodes.iter().filter(|node| !node.refusal.is_empty()) {
        text += &format!("\n{} does not start: {}\n", shown(&node.name), shown(&node.refusal));
    }
    for node in &status.nodes {
        for warning in &node.warnings {
            text += &format!("\nwarning: {}: {}\n", shown(&node.name), shown(warning));
        }
    }
    if status.collecting > 0 {
        text +=
            &format!("\n{} wait to be removed from the disks\n", count(status.collecting, "deleted file"));
    }
    text
}

/// One line on whether everything is there, with the names of what is lost. It claims only what was compared with the nodes
/// that are live now.
fn health(status: &StatusResponse) -> String {
    if status.lost_files > 0 {
        let mut text = format!(
            "DATA LOST: {} with content that no disk has any more; upload them again, or remove them:",
            count(status.lost_files, "file")
        );
        status.lost.iter().for_each(|name| text += &format!("\n  {}", shown(name)));
        let more = status.lost_files.saturating_sub(status.lost.len() as u64);
        if more > 0 {
            text += &format!("\n  and {more} more");
        }
        return text;
    }
    if is_settled(status) {
        return "settled: everything has all its copies".to_owned();
    }
    match status.readable() {
        Readable::All if status.metadata_restored => {
            "every file that this copy of the metadata names can be read; files stored after that copy was made have no \
             name in it"
                .to_owned()
        }
        Readable::All => format!(
            "every file can be read; copies are still being made or compared: {} of {} settled",
            status.settled,
            count(status.placement_groups.into(), "placement group")
        ),
        Readable::NotAll => {
            let down = status.nodes.iter().any(|node| node.state() == NodeState::NodeDown);
            let help =
                if down { "start the nodes that are down" } else { "a node does not answer the others" };
            let groups = count(status.missing.into(), "placement group");
            format!("some files cannot be read now: content in {groups} is on no node that answers; {help}")
        }
        Readable::BeingChecked | Readable::Unspecified if status.unavailable > 0 => format!(
            "files in {} without a live node cannot be read now; the others are being checked",
            count(status.unavailable.into(), "placement group")
        ),
        Readable::BeingChecked | Readable::Unspecified => {
            "whether everything can be read is being checked: the disks are compared with the metadata"
                .to_owned()
        }
    }
}

fn document(status: &StatusResponse) -> Document {
    let nodes = status.nodes.iter().map(|node| NodeDocument {
        name: node.name.clone(),
        zone: node.zone.clone(),
        address: node.address.clone(),
        state: state_name(node.state()),
        capacity_bytes: node.capacity_bytes,
        used_bytes: node.used_bytes,
        chunks: node.chunks,
        placement_groups: node.placement_groups,
        settled_placement_groups: node.settled_placement_groups,
        version: node.version.clone(),
        refusal: node.refusal.clone(),
        warnings: node.warnings.clone(),
    });
    Document {
        cluster: status.cluster.clone(),
        cluster_id: status.cluster_id.clone(),
        settled: is_settled(status),
        placement_groups: GroupsDocument {
            total: status.placement_groups,
            settled: status.settled,
            degraded: status.degraded,
            unavailable: status.unavailable,
        },
        nodes: nodes.collect(),
        coordinator: status.coordinator.clone(),
        answered_by: status.answered_by.clone(),
        map_generation: status.map_generation,
        intent_generation: status.intent_generation,
        collecting: status.collecting,
        compared: status.compared,
        readable: match status.readable() {
            Readable::All => "all",
            Readable::NotAll => "not_all",
            Readable::BeingChecked | Readable::Unspecified => "being_checked",
        },
        missing: status.missing,
        metadata_restored: status.metadata_restored,
        lost_files: status.lost_files,
        lost: status.lost.clone(),
    }
}

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::NodeLive => "live",
        NodeState::NodeDown => "down",
        NodeState::NodeExpected => "expected",
        NodeState::Unspecified => "unknown",
    }
}

#[derive(Serialize)]
struct NodeDone<'a> {
    node: &'a str,
    done: &'static str,
}

pub async fn stop(client: &Client, name: &str, output: &Output) -> Result<Exit, Failure> {
    client.stop_node(name).await?;
    output.done(&NodeDone { node: name, done: "stopped" }, || {
        format!("stopped {name}, as if it had lost power\n")
    });
    Ok(Exit::Ok)
}

pub async fn start(client: &Client, name: &str, output: &Output) -> Result<Exit, Failure> {
    let (done, text) = match client.start_node(name).await? {
        true => ("started", format!("started {name}\n")),
        false => ("running", format!("{name} runs already\n")),
    };
    output.done(&NodeDone { node: name, done }, || text);
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use cairn_client::NodeStatus;

    use super::*;

    fn status(settled: u32, degraded: u32, unavailable: u32) -> StatusResponse {
        let node = |name: &str, state: NodeState| NodeStatus {
            name: name.into(),
            zone: "a".into(),
            state: state.into(),
            ..NodeStatus::default()
        };
        StatusResponse {
            cluster: "demo".into(),
            placement_groups: 128,
            settled,
            degraded,
            unavailable,
            compared: true,
            readable: Readable::All.into(),
            nodes: vec![node("n1", NodeState::NodeLive), node("n2", NodeState::NodeDown)],
            ..StatusResponse::default()
        }
    }

    #[test]
    fn settled_means_all_of_it() {
        assert!(is_settled(&status(128, 0, 0)));
        assert!(!is_settled(&status(127, 1, 0)));
        assert!(!is_settled(&status(127, 0, 1)));
        assert!(!is_settled(&StatusResponse::default()), "a cluster without a map is not settled");
    }

    #[test]
    fn nothing_is_claimed_that_was_not_compared() {
        let with = |readable: Readable, unavailable: u32| {
            health(&StatusResponse { readable: readable.into(), missing: 3, ..status(0, 128, unavailable) })
        };
        let all = with(Readable::All, 0);
        assert!(all.starts_with("every file can be read; ") && all.contains("0 of 128"), "{all}");
        let missing = with(Readable::NotAll, 0);
        assert!(missing.starts_with("some files cannot be read now"), "{missing}");
        assert!(missing.contains("3 placement groups") && missing.contains("start the nodes"), "{missing}");
        for unknown in [Readable::BeingChecked, Readable::Unspecified] {
            assert!(with(unknown, 0).contains("is being checked"));
            assert!(with(unknown, 2).contains("2 placement groups without a live node cannot be read"));
        }
    }

    #[test]
    fn waiting_ends_when_no_node_could_bring_back_what_is_lost() {
        let lost = StatusResponse { lost_files: 1, readable: Readable::NotAll.into(), ..status(127, 1, 0) };
        let live = |mut lost: StatusResponse| {
            lost.nodes.iter_mut().for_each(|node| node.state = NodeState::NodeLive.into());
            lost
        };
        assert!(is_lost_for_good(&live(lost.clone())));
        assert!(!is_lost_for_good(&lost), "the node that is down may come back");
        let unsure = StatusResponse { readable: Readable::BeingChecked.into(), ..live(lost.clone()) };
        assert!(!is_lost_for_good(&unsure), "a node has just started");
        assert!(!is_lost_for_good(&StatusResponse { lost_files: 0, ..live(lost) }));
    }

    #[test]
    fn a_restored_metadata_store_is_said_first_and_nothing_counts_as_settled() {
        let restored = StatusResponse { metadata_restored: true, ..status(128, 0, 0) };
        let text = describe(&restored);
        let first = text.lines().next().unwrap();
        assert!(first.starts_with("METADATA RESTORED: "), "{text}");
        assert!(first.contains("nothing is deleted") && first.contains("`cairn-node recover`"), "{text}");
        assert!(!text.contains("settled: ") && !text.contains("has all its copies"), "{text}");
        assert!(text.contains("files stored after that copy was made"), "{text}");
        let document = serde_json::to_value(document(&restored)).unwrap();
        assert_eq!((&document["settled"], &document["metadata_restored"]), (&false.into(), &true.into()));
        // Neither does the loss of files push it from the first place.
        let both = StatusResponse { lost_files: 1, lost: vec!["files/a".into()], ..restored };
        let text = describe(&both);
        assert!(text.starts_with("METADATA RESTORED: ") && text.contains("DATA LOST: 1 file "), "{text}");
    }

    #[test]
    fn a_node_that_does_not_start_is_named_with_the_reason() {
        let node = NodeStatus {
            name: "n2".into(),
            state: NodeState::NodeDown.into(),
            refusal: "/data holds no disk: mount it".into(),
            ..NodeStatus::default()
        };
        let down = StatusResponse { nodes: vec![node, NodeStatus::default()], ..status(0, 128, 0) };
        let text = describe(&down);
        assert!(text.contains("\nn2 does not start: /data holds no disk: mount it\n"), "{text}");
        let document = serde_json::to_value(document(&down)).unwrap();
        assert_eq!(document["nodes"][0]["refusal"], "/data holds no disk: mount it");
        assert_eq!(document["nodes"][1].get("refusal"), None, "there is none");
    }

    #[test]
    fn what_waiting_does_not_mend_is_a_failure() {
        let good = status(128, 0, 0);
        assert_eq!(exit(&good), Exit::Ok);
        assert_eq!(exit(&status(100, 28, 0)), Exit::Ok, "it is on its way");
        assert_eq!(exit(&StatusResponse { lost_files: 1, ..good.clone() }), Exit::Unavailable);
        let restored = StatusResponse { metadata_restored: true, ..good };
        assert_eq!(exit(&restored), Exit::Unavailable);
        let (cause, help) = hopeless(&restored).unwrap();
        assert!(cause.contains("older copy") && help.contains("`cairn-node recover`"), "{cause}: {help}");
        assert!(hopeless(&status(100, 28, 0)).is_none());
    }

    #[test]
    fn the_text_says_how_it_is() {
        let text = describe(&status(100, 28, 0));
        assert!(text.starts_with(
            "cluster demo: 1 of 2 nodes live; 100 of 128 placement groups settled, 28 degraded\n"
        ));
        assert!(text.contains("n2") && text.contains("down"));
        assert!(describe(&status(128, 0, 0)).contains("everything has all its copies"));
        let lost = vec!["docs/a\u{1b}[2J".to_owned()];
        let lost = StatusResponse { lost_files: 2, lost, ..status(127, 1, 0) };
        let text = describe(&lost);
        assert!(
            text.contains("DATA LOST: 2 files") && text.contains("docs/a") && text.contains("and 1 more")
        );
        assert!(!text.contains('\u{1b}'));
        let line = in_one_line(&health(&lost));
        assert!(line.ends_with("remove them: docs/a\\u{1b}[2J, and 1 more"), "{line}");
        assert!(
            unsettled_help(true).contains("upload these files again")
                && unsettled_help(false).contains("--timeout")
        );
    }
}
