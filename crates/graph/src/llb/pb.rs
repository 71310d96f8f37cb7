//! The messages of BuildKit's `solver/pb/ops.proto` (package `pb`), as far as a [`crate::Graph`] or the refusal of what
//! it cannot hold needs them. Names and field numbers are those of that file. Fields from 50000 on are Kiln's own, for
//! what LLB has no field for; BuildKit passes them over. An `optional` scalar is a plain field there: what differs is
//! only whether a zero is written.

#![allow(missing_docs, reason = "the fields are those of ops.proto")]

use std::collections::BTreeMap;

/// A graph: operations, the last of which stands for the target and does nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Definition {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub def: Vec<Vec<u8>>,
    #[prost(btree_map = "string, message", tag = "2")]
    pub metadata: BTreeMap<String, OpMetadata>,
    #[prost(message, optional, tag = "3")]
    pub source: Option<Source>,
}

/// What is said of an operation beside its identity.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OpMetadata {
    #[prost(bool, tag = "1")]
    pub ignore_cache: bool,
    #[prost(btree_map = "string, string", tag = "2")]
    pub description: BTreeMap<String, String>,
}

/// Where operations stand in files.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Source {
    #[prost(btree_map = "string, message", tag = "1")]
    pub locations: BTreeMap<String, Locations>,
    #[prost(message, repeated, tag = "2")]
    pub infos: Vec<SourceInfo>,
}

/// Where an operation stands.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Locations {
    #[prost(message, repeated, tag = "1")]
    pub locations: Vec<Location>,
}

/// A file that operations come from.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SourceInfo {
    #[prost(string, tag = "1")]
    pub filename: String,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
    #[prost(string, tag = "4")]
    pub language: String,
}

/// Parts of a file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Location {
    #[prost(int32, tag = "1")]
    pub source_index: i32,
    #[prost(message, repeated, tag = "2")]
    pub ranges: Vec<Range>,
}

/// A part of a file; both ends belong to it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Range {
    #[prost(message, optional, tag = "1")]
    pub start: Option<Position>,
    #[prost(message, optional, tag = "2")]
    pub end: Option<Position>,
}

/// A place in a file; lines count from 1.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Position {
    #[prost(int32, tag = "1")]
    pub line: i32,
    #[prost(int32, tag = "2")]
    pub character: i32,
}

/// An operation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Op {
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<Input>,
    #[prost(oneof = "Kind", tags = "2, 3, 4, 5, 6, 7")]
    pub kind: Option<Kind>,
    #[prost(message, optional, tag = "10")]
    pub platform: Option<Platform>,
    #[prost(message, optional, tag = "11")]
    pub constraints: Option<WorkerConstraints>,
    /// Kiln's: tells operations apart that differ only in their metadata, which a digest does not cover. 0 for the first.
    #[prost(uint32, tag = "50000")]
    pub variant: u32,
}

/// What an operation does.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    #[prost(message, tag = "2")]
    Exec(Box<ExecOp>),
    #[prost(message, tag = "3")]
    Source(SourceOp),
    #[prost(message, tag = "4")]
    File(FileOp),
    #[prost(message, tag = "5")]
    Build(BuildOp),
    #[prost(message, tag = "6")]
    Merge(MergeOp),
    #[prost(message, tag = "7")]
    Diff(DiffOp),
}

/// An output of another operation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Input {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub index: i64,
}

/// An operating system and processor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Platform {
    #[prost(string, tag = "1")]
    pub architecture: String,
    #[prost(string, tag = "2")]
    pub os: String,
    #[prost(string, tag = "3")]
    pub variant: String,
    #[prost(string, tag = "4")]
    pub os_version: String,
    #[prost(string, repeated, tag = "5")]
    pub os_features: Vec<String>,
}

/// Which workers may run an operation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkerConstraints {
    #[prost(string, repeated, tag = "1")]
    pub filter: Vec<String>,
}

/// A build within a build; its fields are of no interest, it is refused.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct BuildOp {}

/// Where bytes come from.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SourceOp {
    #[prost(string, tag = "1")]
    pub identifier: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub attrs: BTreeMap<String, String>,
}

/// A process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecOp {
    #[prost(message, optional, tag = "1")]
    pub meta: Option<Meta>,
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    #[prost(enumeration = "NetMode", tag = "3")]
    pub network: i32,
    #[prost(enumeration = "SecurityMode", tag = "4")]
    pub security: i32,
    #[prost(message, repeated, tag = "5")]
    pub secretenv: Vec<SecretEnv>,
    #[prost(message, repeated, tag = "6")]
    pub cdi_devices: Vec<CdiDevice>,
}

/// Arguments and surroundings of a process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Meta {
    #[prost(string, repeated, tag = "1")]
    pub args: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub env: Vec<String>,
    #[prost(string, tag = "3")]
    pub cwd: String,
    #[prost(string, tag = "4")]
    pub user: String,
    #[prost(message, optional, tag = "5")]
    pub proxy_env: Option<ProxyEnv>,
    #[prost(message, repeated, tag = "6")]
    pub extra_hosts: Vec<HostIp>,
    #[prost(string, tag = "7")]
    pub hostname: String,
    #[prost(message, repeated, tag = "9")]
    pub ulimit: Vec<Ulimit>,
    #[prost(string, tag = "10")]
    pub cgroup_parent: String,
    #[prost(bool, tag = "11")]
    pub remove_mount_stubs_recursive: bool,
    #[prost(int32, repeated, tag = "12")]
    pub valid_exit_codes: Vec<i32>,
    /// Kiln's: bytes of `/dev/shm`. The last mount then is the one that says so to BuildKit.
    #[prost(uint64, tag = "50000")]
    pub shm_size: u64,
    /// Kiln's: all proxy variables as they are, of which `proxy_env` holds those that it has a field for.
    #[prost(string, repeated, tag = "50001")]
    pub proxies: Vec<String>,
}

/// Proxies, given to the process in variables of both cases.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProxyEnv {
    #[prost(string, tag = "1")]
    pub http_proxy: String,
    #[prost(string, tag = "2")]
    pub https_proxy: String,
    #[prost(string, tag = "3")]
    pub ftp_proxy: String,
    #[prost(string, tag = "4")]
    pub no_proxy: String,
    #[prost(string, tag = "5")]
    pub all_proxy: String,
}

/// A line of `/etc/hosts`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HostIp {
    #[prost(string, tag = "1")]
    pub host: String,
    #[prost(string, tag = "2")]
    pub ip: String,
}

/// A limit; -1 is no limit.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ulimit {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int64, tag = "2")]
    pub soft: i64,
    #[prost(int64, tag = "3")]
    pub hard: i64,
}

/// A device of the container device interface; refused.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CdiDevice {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// A secret in a variable.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SecretEnv {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(bool, tag = "3")]
    pub optional: bool,
    /// Kiln's: the mount that asked for the variable, counted in [`crate::ExecOp::mounts`].
    #[prost(uint32, optional, tag = "50000")]
    pub position: Option<u32>,
    /// Kiln's: that mount, where it is not also a file and so not among the operation's mounts.
    #[prost(message, optional, tag = "50001")]
    pub mount: Option<Mount>,
}

/// A mount. Input -1 is the empty tree, output -1 is none.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    #[prost(int64, tag = "1")]
    pub input: i64,
    #[prost(string, tag = "2")]
    pub selector: String,
    #[prost(string, tag = "3")]
    pub dest: String,
    #[prost(int64, tag = "4")]
    pub output: i64,
    #[prost(bool, tag = "5")]
    pub readonly: bool,
    #[prost(enumeration = "MountType", tag = "6")]
    pub mount_type: i32,
    #[prost(message, optional, tag = "19")]
    pub tmpfs_opt: Option<TmpfsOpt>,
    #[prost(message, optional, tag = "20")]
    pub cache_opt: Option<CacheOpt>,
    #[prost(message, optional, tag = "21")]
    pub secret_opt: Option<FileOpt>,
    #[prost(message, optional, tag = "22")]
    pub ssh_opt: Option<FileOpt>,
}

/// Options of a mount of memory.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct TmpfsOpt {
    #[prost(int64, tag = "1")]
    pub size: i64,
}

/// Options of a cache mount.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CacheOpt {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(enumeration = "CacheSharingOpt", tag = "2")]
    pub sharing: i32,
    /// Kiln's: mode of a new folder.
    #[prost(uint32, optional, tag = "50000")]
    pub mode: Option<u32>,
    /// Kiln's: owner of a new folder.
    #[prost(uint32, optional, tag = "50001")]
    pub uid: Option<u32>,
    /// Kiln's: group of a new folder.
    #[prost(uint32, optional, tag = "50002")]
    pub gid: Option<u32>,
}

/// Options of a secret (`SecretOpt`) or an agent's socket (`SSHOpt`), which are alike.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileOpt {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(uint32, optional, tag = "2")]
    pub uid: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub gid: Option<u32>,
    #[prost(uint32, tag = "4")]
    pub mode: u32,
    #[prost(bool, tag = "5")]
    pub optional: bool,
    /// Kiln's: the mode is the default one, but was given.
    #[prost(bool, tag = "50000")]
    pub mode_given: bool,
}

/// Networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum NetMode {
    Unset = 0,
    Host = 1,
    None = 2,
}

/// Confinements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum SecurityMode {
    Sandbox = 0,
    Insecure = 1,
}

/// Kinds of mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum MountType {
    Bind = 0,
    Secret = 1,
    Ssh = 2,
    Cache = 3,
    Tmpfs = 4,
}

/// Ways to share a cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum CacheSharingOpt {
    Shared = 0,
    Private = 1,
    Locked = 2,
}

/// A chain of file actions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileOp {
    #[prost(message, repeated, tag = "2")]
    pub actions: Vec<FileAction>,
}

/// A file action. A tree is -1 (empty), an input of the operation, or, counted on after the inputs, what an earlier
/// action left; output -1 is none. A copy from -2 is one without a source, which only Kiln can say.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileAction {
    #[prost(int64, tag = "1")]
    pub input: i64,
    #[prost(int64, tag = "2")]
    pub secondary_input: i64,
    #[prost(int64, tag = "3")]
    pub output: i64,
    #[prost(oneof = "Action", tags = "4, 5, 6, 7")]
    pub action: Option<Action>,
}

/// What a file action does.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Action {
    #[prost(message, tag = "4")]
    Copy(FileActionCopy),
    #[prost(message, tag = "5")]
    MkFile(FileActionMkFile),
    #[prost(message, tag = "6")]
    MkDir(FileActionMkDir),
    #[prost(message, tag = "7")]
    Rm(FileActionRm),
}

/// A copy; mode -1 keeps the modes, timestamp -1 (else nanoseconds since 1970) the times.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileActionCopy {
    #[prost(string, tag = "1")]
    pub src: String,
    #[prost(string, tag = "2")]
    pub dest: String,
    #[prost(message, optional, tag = "3")]
    pub owner: Option<ChownOpt>,
    #[prost(int32, tag = "4")]
    pub mode: i32,
    #[prost(bool, tag = "5")]
    pub follow_symlink: bool,
    #[prost(bool, tag = "6")]
    pub dir_copy_contents: bool,
    #[prost(bool, tag = "7")]
    pub attempt_unpack_docker_compatibility: bool,
    #[prost(bool, tag = "8")]
    pub create_dest_path: bool,
    #[prost(bool, tag = "9")]
    pub allow_wildcard: bool,
    #[prost(bool, tag = "10")]
    pub allow_empty_wildcard: bool,
    #[prost(int64, tag = "11")]
    pub timestamp: i64,
    #[prost(string, repeated, tag = "12")]
    pub include_patterns: Vec<String>,
    #[prost(string, repeated, tag = "13")]
    pub exclude_patterns: Vec<String>,
    #[prost(bool, tag = "14")]
    pub always_replace_existing_dest_paths: bool,
    #[prost(string, optional, tag = "15")]
    pub mode_str: Option<String>,
    /// Kiln's: where `--parents` cuts the source path.
    #[prost(string, optional, tag = "50000")]
    pub parents_pivot: Option<String>,
    /// Kiln's: a time that nanoseconds cannot hold.
    #[prost(int64, optional, tag = "50001")]
    pub seconds: Option<i64>,
}

/// A file that is made.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileActionMkFile {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(int32, tag = "2")]
    pub mode: i32,
    #[prost(bytes = "vec", tag = "3")]
    pub data: Vec<u8>,
    #[prost(message, optional, tag = "4")]
    pub owner: Option<ChownOpt>,
    #[prost(int64, tag = "5")]
    pub timestamp: i64,
    /// Kiln's: a time that nanoseconds cannot hold.
    #[prost(int64, optional, tag = "50001")]
    pub seconds: Option<i64>,
}

/// A folder that is made.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileActionMkDir {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(int32, tag = "2")]
    pub mode: i32,
    #[prost(bool, tag = "3")]
    pub make_parents: bool,
    #[prost(message, optional, tag = "4")]
    pub owner: Option<ChownOpt>,
    #[prost(int64, tag = "5")]
    pub timestamp: i64,
    /// Kiln's: a time that nanoseconds cannot hold.
    #[prost(int64, optional, tag = "50001")]
    pub seconds: Option<i64>,
}

/// A removal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FileActionRm {
    #[prost(string, tag = "1")]
    pub path: String,
    #[prost(bool, tag = "2")]
    pub allow_not_found: bool,
    #[prost(bool, tag = "3")]
    pub allow_wildcard: bool,
}

/// An owner.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ChownOpt {
    #[prost(message, optional, tag = "1")]
    pub user: Option<UserOpt>,
    #[prost(message, optional, tag = "2")]
    pub group: Option<UserOpt>,
}

/// A user or group.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UserOpt {
    #[prost(oneof = "User", tags = "1, 2")]
    pub user: Option<User>,
}

/// How a user or group is given.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum User {
    #[prost(message, tag = "1")]
    ByName(NamedUserOpt),
    #[prost(uint32, tag = "2")]
    ById(u32),
}

/// A user or group by name, looked up in a tree numbered as in [`FileAction`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamedUserOpt {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int64, tag = "2")]
    pub input: i64,
}

/// Layers of several trees upon each other, lowest first.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MergeOp {
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<InputNumber>,
}

/// What one tree has over another.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct DiffOp {
    #[prost(message, optional, tag = "1")]
    pub lower: Option<InputNumber>,
    #[prost(message, optional, tag = "2")]
    pub upper: Option<InputNumber>,
}

/// An input by its number, -1 for the empty tree (`MergeInput`, `LowerDiffInput`, `UpperDiffInput`).
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct InputNumber {
    #[prost(int64, tag = "1")]
    pub input: i64,
}
