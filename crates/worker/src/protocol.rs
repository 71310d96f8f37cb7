//! What the front and the worker say to each other.

use std::sync::Arc;

use kiln_graph::{FileOp, Network};
use kiln_image::{ContentId, DiffId, LayerId, LayerIndex};
use kiln_sandbox::Limits;
use kiln_source::Stamps;
use kiln_store::LayerSummary;
use serde::{Deserialize, Serialize};

/// A job.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// What the worker found out about where it runs.
    Facts,
    /// Runs a process on a root file system and keeps what it changed. Descriptors: standard output, standard error.
    Exec(Box<ExecJob>),
    /// Runs a chain of file actions.
    File(Box<FileJob>),
    /// Makes a layer of a tar. Descriptor: the tar (a seekable file, or a pipe when no range is given).
    Unpack(UnpackJob),
    /// The diff id of a layer.
    Digest {
        /// The layer.
        layer: LayerId,
        /// Latest modification time, seconds since 1970.
        clamp: Option<i64>,
    },
    /// Writes a layer's tar. Descriptor: where to.
    WriteTar {
        /// The layer.
        layer: LayerId,
        /// Latest modification time, seconds since 1970.
        clamp: Option<i64>,
    },
    /// Writes all that layers show together as one tar. Descriptor: where to.
    WriteTree {
        /// The layers, lowest first; of several such trees each below a folder of its own, which is named before it.
        trees: Vec<(String, Stacked)>,
        /// Latest modification time, seconds since 1970.
        clamp: Option<i64>,
    },
    /// Writes all that layers show together into a folder of the user. Descriptor: the folder.
    CheckOut {
        /// The layers, lowest first.
        layers: Stacked,
        /// Latest modification time, seconds since 1970.
        clamp: Option<i64>,
        /// Remove what is in the folder and not in the layers.
        delete: bool,
    },
    /// Removes the folders of layers.
    Delete(Vec<LayerId>),
    /// What folders take of the disk.
    Space {
        /// Layers, finished or not.
        layers: Vec<LayerId>,
        /// Folders of cache mounts.
        caches: Vec<String>,
    },
    /// How much the worker may write into layers from now on, in bytes ([`kiln_store::layer_fs::allow`]).
    Allow(u64),
    /// Compares the files of a layer with its index, content included.
    Verify(LayerId),
    /// Removes folders of cache mounts.
    RemoveCaches(Vec<String>),
    /// Writes cache mounts into one archive: the note first, then each folder under its name. Descriptor: where to.
    PackCaches {
        /// The folders.
        folders: Vec<String>,
        /// What the archive says about them.
        note: Vec<u8>,
    },
    /// Unpacks such an archive into a scratch layer. Descriptor: the archive, compressed or not.
    UnpackCaches {
        /// The scratch layer.
        into: LayerId,
    },
    /// Makes a folder of a scratch layer that of a cache mount; what was there goes with the scratch layer.
    PlaceCache {
        /// The scratch layer.
        from: LayerId,
        /// The folder's name in it.
        folder: String,
        /// The cache mount's folder.
        to: String,
    },
    /// Runs a container. Descriptors: standard input, output, error. What comes on the job's connection after the
    /// request are signals for the process, one byte each.
    Run(Box<ExecJob>),
}

/// A process, as the image and the Dockerfile say it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working folder, made when missing.
    pub cwd: String,
    /// `user[:group]`, names or numbers; empty for root.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// The text of `/etc/hosts`.
    pub hosts: String,
    /// The text of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Network.
    pub network: Network,
    /// All capabilities and no system call filter.
    pub insecure: bool,
    /// Memory and processors.
    pub limits: Limits,
    /// Limits: name, soft, hard.
    pub ulimits: Vec<(String, u64, u64)>,
    /// Bytes of `/dev/shm`; 0 for the default.
    pub shm_size: u64,
    /// The root itself cannot be written.
    pub read_only_root: bool,
    /// The descriptors are one terminal that becomes the process's controlling terminal.
    pub terminal: bool,
    /// A process 1 that collects processes comes before the program.
    #[serde(default)]
    pub init: bool,
    /// What a container may do, where it is not the usual.
    #[serde(default)]
    pub rights: Rights,
}

/// What a process may do, where it is not what is usual.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Its capabilities, a bit each, instead of docker's.
    pub capabilities: Option<u64>,
    /// No system call filter.
    pub unfiltered: bool,
    /// Set-user-id programs give no privileges.
    pub no_new_privileges: bool,
    /// Further groups, by name or number.
    pub groups: Vec<String>,
}

/// The text of `/etc/hosts`: the loopback names, then extra lines of name and address.
pub fn hosts_file(hostname: &str, extra: &[(String, String)]) -> String {
    let mut text =
        format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in extra {
        text.extend([address, "\t", name, "\n"]);
    }
    text
}

/// A stack of layers, lowest first.
pub type Stacked = Vec<LayerId>;

/// A process and the trees it works on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecJob {
    /// The process.
    pub process: ProcessSpec,
    /// The layers of the root.
    pub root: Stacked,
    /// The layer that the changes of the root go to; a container's folder name for [`Request::Run`].
    pub into: LayerId,
    /// Further mounts, in order.
    pub mounts: Vec<ExecMount>,
    /// Certificates of the host that the process trusts.
    pub trust: Option<Trust>,
    /// What it changed becomes a layer however it ends; else only when it ends with code 0, or never for a container.
    pub keep: bool,
}

/// Certificates of the host, as PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// All that the host trusts.
    pub bundle: Vec<u8>,
    /// Those that the host trusts and others do not; when there are none, all of the bundle.
    pub anchors: Vec<u8>,
}

/// A mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecMount {
    /// Where, absolute.
    pub dest: String,
    /// Cannot be written.
    pub readonly: bool,
    /// What.
    pub source: MountSource,
}

/// A folder in a stack of layers that is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// The layers.
    pub layers: Stacked,
    /// The path of the folder; empty or `/` for all.
    pub selector: String,
}

/// What is mounted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum MountSource {
    /// A path within a stack of layers.
    Tree {
        /// The layers.
        layers: Stacked,
        /// The path; empty or `/` for all.
        selector: String,
        /// The layer that changes go to.
        into: LayerId,
        /// Whether that layer is kept as a result.
        keep: bool,
    },
    /// A folder or file of the machine.
    Host(String),
    /// A folder that outlives builds, by its path below the store's root.
    Cache {
        /// Path below the store's root.
        dir: String,
        /// Mode of a new folder.
        mode: u16,
        /// Owner of a new folder; `None` is the process's user.
        uid: Option<u32>,
        /// Group of a new folder.
        gid: Option<u32>,
        /// What a new folder starts as; empty without.
        seed: Option<Seed>,
        /// The scratch layer in which a new folder is made.
        scratch: LayerId,
    },
    /// Memory.
    Tmpfs {
        /// Bytes, 0 for no limit.
        size: u64,
    },
    /// A file that is in memory only.
    File {
        /// Content.
        content: Vec<u8>,
        /// Mode.
        mode: u16,
        /// Owner; `None` is root.
        uid: Option<u32>,
        /// Group.
        gid: Option<u32>,
    },
}

/// File actions with their trees.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FileJob {
    /// The actions.
    pub op: FileOp,
    /// The inputs of the operation.
    pub inputs: Vec<FileTree>,
    /// The new layer of each output.
    pub into: Vec<LayerId>,
    /// For each output a whole layer that may have most of the same files; the new one may stand on it. May be shorter.
    pub earlier: Vec<Option<LayerId>>,
    /// The time of what has none of its own.
    pub now: (i64, u32),
}

/// A tree that file actions read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FileTree {
    /// A stack of layers.
    Layers(Stacked),
    /// A stack of which some layers are elsewhere: no file of it is read.
    Outline(Vec<Outlined>),
    /// A folder of the machine with what was found in it.
    Local {
        /// Absolute path.
        root: String,
        /// What a build sees of it. Sent behind the request, in parts.
        #[serde(skip)]
        index: Arc<LayerIndex>,
        /// The state of its files when they were hashed. Sent behind the index.
        #[serde(skip)]
        stamps: Stamps,
    },
}

/// A layer of which only the entries are wanted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Outlined {
    /// In the store.
    Here(LayerId),
    /// Elsewhere.
    Elsewhere(Arc<LayerIndex>),
}

/// A tar to make a layer of.
#[derive(Debug, Serialize, Deserialize)]
pub struct UnpackJob {
    /// The new layer.
    pub into: LayerId,
    /// Where in the descriptor.
    pub input: TarInput,
}

/// Where a tar stands in a descriptor.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum TarInput {
    /// From here to the end.
    Stream,
    /// A range of a seekable file.
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// A layer that a job made, on disk with its index.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Made {
    /// The layer.
    pub layer: LayerId,
    /// Its outcome.
    pub content_id: ContentId,
    /// Bytes of its files.
    pub size: u64,
    /// Entries of its index.
    pub entries: u64,
    /// What its folder takes of the disk, in bytes.
    pub space: u64,
    /// The layer on whose folder it stands.
    pub below: Option<LayerId>,
}

impl From<&Made> for LayerSummary {
    fn from(made: &Made) -> Self {
        Self {
            content_id: made.content_id,
            size: made.size,
            entries: made.entries,
            space: made.space,
            below: made.below,
        }
    }
}

/// The folder of a cache mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheFolder {
    /// What it takes of the disk, in bytes.
    pub space: u64,
    /// Its owner in the image.
    pub owner: (u32, u32),
    /// Its mode.
    pub mode: u16,
}

/// What file actions gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MadeFiles {
    /// The layer of each output.
    pub layers: Vec<Made>,
    /// Files of a local context that were others when they were copied than when they were hashed. The layers are
    /// true, but keys that were made from the hashes are not theirs.
    pub changed: Vec<String>,
    /// Names of owners that the image does not know, as sentences.
    pub unknown: Vec<String>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// What unpacking gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnpackedLayer {
    /// The layer.
    pub made: Made,
    /// The sha256 of the uncompressed tar as it came.
    pub diff_id: DiffId,
    /// Its size in bytes.
    pub tar_size: u64,
    /// Kiln's own tar of the layer has the same bytes.
    pub reproducible: bool,
}

/// Where the worker runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerFacts {
    /// `overlay` or `plain tree`.
    pub provider: String,
    /// Why.
    pub reason: String,
}

/// The answer to a job.
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    /// Done, nothing to say.
    Done,
    /// To [`Request::Facts`].
    Facts(WorkerFacts),
    /// To [`Request::Exec`] and [`Request::Run`]. The layers are empty unless they are kept: those of a
    /// step when its process ended with code 0.
    Exited {
        /// How.
        exit: Exit,
        /// The kernel killed it for want of memory.
        out_of_memory: bool,
        /// It failed, and the store's disk was full when it did.
        disk_full: bool,
        /// The kernel could not execute it: it is for another processor, or its interpreter is missing.
        foreign: bool,
        /// The root's layer first, then those of mounts that are kept.
        made: Vec<Made>,
        /// What the user should know of.
        notes: Vec<String>,
    },
    /// To [`Request::File`].
    Files(MadeFiles),
    /// To [`Request::Unpack`].
    Unpacked(UnpackedLayer),
    /// To [`Request::Digest`], [`Request::WriteTar`] and [`Request::WriteTree`].
    Tar {
        /// The sha256 of the tar.
        diff_id: DiffId,
        /// Its size in bytes.
        size: u64,
    },
    /// To [`Request::Space`]. Nothing for a cache mount that has no folder yet.
    Spaces {
        /// Bytes of each layer.
        layers: Vec<u64>,
        /// The cache mounts.
        caches: Vec<Option<CacheFolder>>,
    },
    /// To [`Request::Verify`]: what differs, in words.
    Verified(Vec<String>),
    /// To [`Request::UnpackCaches`]: the note.
    CachesUnpacked(Vec<u8>),
    /// The job failed.
    Failed(Failure),
}

/// Why a job failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// In words, for the user.
    pub message: String,
    /// A way out, where there is one.
    pub hint: Option<String>,
}

/// The kinds of failures that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// Something the user named is not there.
    NotFound,
    /// The disk is full.
    NoSpace,
    /// The job was cancelled.
    Canceled,
    /// A layer of the store is damaged or gone.
    Damaged(LayerId),
    /// Anything else.
    Other,
}
