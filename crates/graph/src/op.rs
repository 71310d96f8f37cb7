//! The operations.

use kiln_image::Platform;
use serde::{Deserialize, Serialize};

/// The index of an operation in its [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId(pub usize);

/// One output of an operation: the thing that other operations take as an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Edge {
    /// The operation.
    pub op: OpId,
    /// Which of its outputs, counted from 0.
    pub output: u32,
}

/// A directed acyclic graph: inputs always stand before the operations that use them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Graph {
    ops: Vec<Op>,
}

impl Graph {
    /// Appends an operation and gives its id. An operation that is equal in all but its `place` to one that is already
    /// there is not added again: the earlier one's id is given.
    ///
    /// # Panics
    /// When an input stands behind the operation: the graph would have a cycle.
    pub fn add(&mut self, op: Op) -> OpId {
        let id = OpId(self.ops.len());
        assert!(
            op.inputs.iter().all(|edge| edge.op < id),
            "inputs come before the operations that use them"
        );
        let same = |known: &Op| {
            known.kind == op.kind
                && known.inputs == op.inputs
                && known.platform == op.platform
                && known.ignore_cache == op.ignore_cache
        };
        if let Some(known) = self.ops.iter().position(same) {
            return OpId(known);
        }
        self.ops.push(op);
        id
    }

    /// Appends the operations of another graph, equal ones once. Gives the ids that they have here, by their ids there.
    pub fn append(&mut self, other: Self) -> Vec<OpId> {
        let mut moved: Vec<OpId> = Vec::with_capacity(other.ops.len());
        for mut op in other.ops {
            for edge in &mut op.inputs {
                edge.op = moved[edge.op.0];
            }
            let id = self.add(op);
            moved.push(id);
        }
        moved
    }

    /// The operation of an id that this graph gave.
    pub fn op(&self, id: OpId) -> &Op {
        &self.ops[id.0]
    }

    /// All operations, inputs first.
    pub fn ops(&self) -> impl DoubleEndedIterator<Item = (OpId, &Op)> + ExactSizeIterator {
        self.ops.iter().enumerate().map(|(at, op)| (OpId(at), op))
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is no operation.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// What it does.
    pub kind: OpKind,
    /// What it takes; numbered by position.
    pub inputs: Vec<Edge>,
    /// Only for image sources and exec: file work is the same on every platform.
    pub platform: Option<Platform>,
    /// `--no-cache`: records are not read, but written.
    pub ignore_cache: bool,
    /// For messages and progress. Not part of the operation's identity.
    pub place: Place,
}

/// Where an operation comes from, for messages and progress.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Place {
    /// What the displays show: `[build 2/4] RUN make`.
    pub title: String,
    /// The step in its stage, without numbers: `RUN make`; the nearest earlier record of the same step is found by it.
    pub step: String,
    /// The stage's name, or `stage-N`; where there are several platforms, with the platform before it.
    pub stage: String,
    /// The lines of the Dockerfile, counted from 1, first and last.
    pub lines: Option<(u32, u32)>,
}

/// The kinds of operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpKind {
    /// Brings bytes from outside. No inputs, one output.
    Source(SourceOp),
    /// Runs a process.
    Exec(Box<ExecOp>),
    /// A chain of file actions.
    File(FileOp),
    /// Stacks the layers of its inputs upon each other, lowest first. One output.
    Merge,
    /// What input 1 has over input 0 (either may be missing: `None` is the empty tree). One output.
    Diff {
        /// Input number of the lower tree.
        lower: Option<usize>,
        /// Input number of the upper tree.
        upper: Option<usize>,
    },
}

/// Where bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceOp {
    /// An image: its canonical reference with the digest that was resolved
    /// (`docker.io/library/busybox:latest@sha256:...`).
    Image {
        /// Canonical reference, with a digest.
        reference: String,
    },
    /// A local context.
    Local {
        /// `context` for the main one, else the name given with `--build-context`.
        name: String,
        /// Patterns of the ignore file, in order; the frontend has parsed comments and blanks away.
        exclude: Vec<String>,
    },
    /// A git repository.
    Git {
        /// Remote and fragment: `https://host/repo.git#ref:subdir`.
        url: String,
        /// Keep the `.git` folder.
        keep_git_dir: bool,
        /// Leave submodules out.
        skip_submodules: bool,
        /// Files have the time of the checkout instead of the commit's.
        checkout_times: bool,
        /// Expected commit (a prefix), when given.
        checksum: Option<String>,
    },
    /// A file from a web server; output is a tree with that one file.
    Http {
        /// Address.
        url: String,
        /// Expected digest, `sha256:...`.
        checksum: Option<String>,
        /// The name the file gets.
        filename: String,
        /// Mode of the file, default 0600.
        mode: Option<u16>,
        /// Owner of the file.
        owner: Option<(u32, u32)>,
    },
    /// An image in an OCI layout folder.
    OciLayout {
        /// Name of the named context that the folder was given as.
        store: String,
        /// Reference within, with digest.
        reference: String,
    },
}

/// A process with its root and mounts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecOp {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment in order, `NAME=value`.
    pub env: Vec<String>,
    /// Working folder.
    pub cwd: String,
    /// `user`, `uid`, `user:group`, or empty for root.
    pub user: String,
    /// Host name; empty for the default.
    pub hostname: String,
    /// Extra lines of `/etc/hosts`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// Network.
    pub network: Network,
    /// Security.
    pub security: Security,
    /// Proxy variables: in the process's environment, never in the key or the image.
    pub proxy_env: Vec<String>,
    /// Limits: name, soft, hard.
    pub ulimits: Vec<(String, u64, u64)>,
    /// Bytes of `/dev/shm`; 0 for the default of 64 MiB.
    pub shm_size: u64,
    /// Mounts; exactly one has the destination `/`, and it is the first.
    pub mounts: Vec<Mount>,
}

/// The network of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub enum Network {
    /// What the builder gives.
    #[default]
    Default,
    /// The host's.
    Host,
    /// Loopback only.
    None,
}

/// The confinement of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub enum Security {
    /// Confined.
    #[default]
    Sandbox,
    /// All capabilities, no filter.
    Insecure,
}

/// A mount of an exec operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The input that is mounted; `None` starts from an empty tree.
    pub input: Option<usize>,
    /// Path within the input.
    pub selector: String,
    /// Where it appears.
    pub dest: String,
    /// Which output of the operation the mount's result is; `None` throws changes away.
    pub output: Option<u32>,
    /// Cannot be written.
    pub readonly: bool,
    /// What it is.
    pub kind: MountKind,
}

/// The kinds of mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A tree (a bind mount of LLB).
    Bind,
    /// A folder that outlives the build.
    Cache {
        /// Its name.
        id: String,
        /// Who may use it at once.
        sharing: Sharing,
        /// Mode of a new folder.
        mode: Option<u16>,
        /// Owner of a new folder.
        uid: Option<u32>,
        /// Group of a new folder.
        gid: Option<u32>,
    },
    /// Memory.
    Tmpfs {
        /// Bytes; 0 for no limit.
        size: u64,
    },
    /// A secret, as a file or as a variable or both.
    Secret {
        /// Its name.
        id: String,
        /// The variable that holds it.
        env: Option<String>,
        /// Whether it also is a file.
        file: bool,
        /// Mode of the file, default 0400.
        mode: Option<u16>,
        /// Owner of the file.
        uid: Option<u32>,
        /// Group of the file.
        gid: Option<u32>,
        /// It need not be there.
        optional: bool,
    },
    /// The socket of an ssh agent.
    Ssh {
        /// Its name.
        id: String,
        /// Mode of the socket, default 0600.
        mode: Option<u16>,
        /// Owner of the socket.
        uid: Option<u32>,
        /// Group of the socket.
        gid: Option<u32>,
        /// It need not be there.
        optional: bool,
    },
}

/// Who may use a cache mount at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub enum Sharing {
    /// Everyone.
    #[default]
    Shared,
    /// One at a time has it, another gets a copy of its own.
    Private,
    /// One at a time, others wait.
    Locked,
}

/// A chain of file actions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileOp {
    /// The actions in order.
    pub actions: Vec<FileAction>,
}

/// What a file action works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileInput {
    /// An empty tree.
    Scratch,
    /// An input of the operation.
    Input(usize),
    /// What an earlier action of the same operation left.
    Action(usize),
}

/// One file action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileAction {
    /// The tree that is changed.
    pub on: FileInput,
    /// Which output of the operation the result is; `None` when only later actions use it.
    pub output: Option<u32>,
    /// What is done.
    pub kind: FileActionKind,
}

/// The kinds of file actions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileActionKind {
    /// Copies from another tree.
    Copy(Box<CopyAction>),
    /// Makes or replaces a file.
    MkFile {
        /// Absolute path.
        path: String,
        /// Mode.
        mode: u16,
        /// Content.
        data: Vec<u8>,
        /// Owner.
        owner: Option<Owner>,
        /// Time, seconds since 1970; `None` for now.
        timestamp: Option<i64>,
    },
    /// Makes a folder; one that is there stays as it is.
    MkDir {
        /// Absolute path.
        path: String,
        /// Mode.
        mode: u16,
        /// Make missing parents, with the same mode and owner.
        make_parents: bool,
        /// Owner.
        owner: Option<Owner>,
        /// Time, seconds since 1970; `None` for now.
        timestamp: Option<i64>,
    },
    /// Removes.
    Rm {
        /// Absolute path.
        path: String,
        /// No error when it is not there.
        allow_not_found: bool,
        /// Path may hold wildcards.
        allow_wildcard: bool,
    },
}

/// A copy from one tree to another: one source of a COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CopyAction {
    /// The tree that is read.
    pub from: Option<FileInput>,
    /// Path in that tree, absolute; may hold wildcards when `allow_wildcard`.
    pub src: String,
    /// Absolute; with a trailing slash it is a folder.
    pub dest: String,
    /// Owner of everything copied and of created parents; `None` keeps the source's.
    pub owner: Option<Owner>,
    /// Mode of everything copied: octal, or symbolic (`u=rwX,go=rX`).
    pub mode: Option<String>,
    /// A last component that is a symbolic link is followed.
    pub follow_symlinks: bool,
    /// A folder's contents are copied, not the folder.
    pub dir_copy_contents: bool,
    /// An archive is unpacked (ADD).
    pub attempt_unpack: bool,
    /// Missing parents of the destination are made.
    pub create_dest_path: bool,
    /// `src` is a pattern.
    pub allow_wildcard: bool,
    /// A pattern may match nothing.
    pub allow_empty_wildcard: bool,
    /// Only what matches these is copied (moby pattern matcher), relative to the source folder; `--parents`.
    pub include_patterns: Vec<String>,
    /// What matches these is not copied; `--exclude`.
    pub exclude_patterns: Vec<String>,
    /// `--parents`: the source path below the pivot is kept under the destination. The part before the pivot.
    pub parents_pivot: Option<String>,
    /// Time that all entries get, seconds since 1970; `None` keeps the source's.
    pub timestamp: Option<i64>,
}

/// An owner: user and group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Owner {
    /// User.
    pub user: Option<UserRef>,
    /// Group; `None` is the same number as the user, or, for a user by name, that user's group in `/etc/passwd`.
    pub group: Option<UserRef>,
}

/// A user or group by number or by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserRef {
    /// Number.
    Id(u32),
    /// Name, looked up in `/etc/passwd` or `/etc/group` of the tree of that input.
    Name {
        /// The name.
        name: String,
        /// The input of the operation whose files are read.
        input: FileInput,
    },
}
