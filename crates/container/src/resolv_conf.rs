//! The container's resolv.conf(5), which names the address that answers DNS.
//!
//! [`Setup::resolv_conf`] is the content of the file. [`write()`] is for a container with a root file system of its
//! own. [`bind`] is for a container that shares its host's. It covers `/etc/resolv.conf` inside the caller's mount
//! namespace and leaves nothing on disk.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nsnet_proto::Setup;

use crate::Error;

const PATH: &str = "/etc/resolv.conf";
/// Anyone in the container may look names up, so anyone may read the file.
const MODE: u32 = 0o644;

/// Writes the file at `path`, for example below the root that is about to be pivoted to.
///
/// An existing file is replaced, not written through. Images often have a symlink there, whose target would be looked
/// up on the host before pivot_root(2). Symlinks in the directories of `path` are followed.
///
/// # Errors
/// If the file cannot be made in its directory.
pub fn write(setup: &Setup, path: impl AsRef<Path>) -> Result<(), Error> {
    let path = path.as_ref();
    let replacement = path.with_extension(format!("nsnet-{}", std::process::id()));
    let written = create(&replacement, setup)
        .and_then(|()| fs::rename(&replacement, path).inspect_err(|_| remove(&replacement)));
    written.map_err(|error| Error::new(format!("write {}", path.display()), error))
}

/// Covers `/etc/resolv.conf` in the calling process's mount namespace.
///
/// The namespace must be its own, from which mounts do not propagate to the host's. [`Namespaces`](crate::Namespaces)
/// makes such a one. For a moment an empty file system covers `/tmp`, or another directory, in that namespace.
///
/// The kernel detaches any bind mount over a file when a process outside replaces the file by rename(2).
/// NetworkManager, systemd-resolved and dhclient do this with `/etc/resolv.conf` or the file it links to. The container
/// then sees the host's new file, whose servers it may not reach. For a container with an `/etc` of its own use
/// [`write()`] instead: nothing outside can take that file away.
///
/// # Errors
/// If there is no such file to cover, or the kernel refuses to mount.
pub fn bind(setup: &Setup) -> Result<(), Error> {
    let target = fs::canonicalize(PATH).map_err(|error| {
        let remedy = if error.kind() == io::ErrorKind::NotFound {
            "make it exist before binding over it, an empty file suffices; a dangling symlink does not"
        } else {
            ""
        };
        Error::new(format!("find {PATH}"), error).with_remedy(remedy)
    })?;
    let Some(cover) = COVERS.into_iter().map(Path::new).find(|dir| dir.is_dir() && !target.starts_with(dir))
    else {
        return Err(Error::refused("find a directory to mount over", format!("none of {COVERS:?} will do")));
    };
    let options = Some("size=64k,mode=0755");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("nsnet"), cover, Some("tmpfs"), flags, options)
        .map_err(|errno| mount_error(format!("mount a tmpfs over {}", cover.display()), errno))?;
    let bound = bind_from(cover, &target, setup);
    // Only the bind mount keeps the file alive from here on.
    let uncovered = umount2(cover, MntFlags::MNT_DETACH)
        .map_err(|errno| mount_error(format!("unmount the tmpfs over {}", cover.display()), errno));
    bound.and(uncovered)
}

/// Directories in which the file may be made. The first that exists and does not hold the target is used.
const COVERS: [&str; 4] = ["/tmp", "/mnt", "/var", "/usr"];

fn bind_from(cover: &Path, target: &Path, setup: &Setup) -> Result<(), Error> {
    let file = cover.join("resolv.conf");
    create(&file, setup).map_err(|error| Error::new(format!("write {}", file.display()), error))?;
    mount(Some(&file), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| mount_error(format!("bind {} over {}", file.display(), target.display()), errno))
}

/// Makes a new file. On failure it leaves none, or the one that was there before.
fn create(path: &Path, setup: &Setup) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    // The umask does not apply to this call.
    file.set_permissions(Permissions::from_mode(MODE))
        .and_then(|()| file.write_all(setup.resolv_conf().as_bytes()))
        .inspect_err(|_| remove(path))
}

/// Removes a file that this module made. Its own error is ignored, because the caller reports an earlier one.
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

fn mount_error(step: String, errno: Errno) -> Error {
    let remedy = if errno == Errno::EPERM {
        "enter a mount namespace of the container's own first: Namespaces::new().user().mount()"
    } else {
        ""
    };
    Error::new(step, errno).with_remedy(remedy)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use nsnet_proto::Offload;

    use super::*;
    use crate::Namespaces;
    use crate::testing::{inside, setup};

    const NAMESPACES: Namespaces = Namespaces::new().user().mount();
    const CONTENT: &str = "# made by nsnet\nnameserver 10.99.2.3\nnameserver fd00::3\n";

    /// Covers a directory with an empty tmpfs, which is gone with the namespace.
    #[track_caller]
    fn empty(directory: &str) {
        mount(Some("test"), directory, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }

    #[test]
    fn bound_file_is_readable_and_nothing_else_is_left() {
        if !inside(NAMESPACES, module_path!(), "bound_file_is_readable_and_nothing_else_is_left") {
            return;
        }
        empty("/etc");
        fs::write(PATH, "nameserver 203.0.113.1\n").unwrap();
        empty("/tmp");
        fs::write("/tmp/mine", "").unwrap();
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
        bind(&setup(Offload::NONE)).unwrap();
        assert_eq!(fs::read_to_string(PATH).unwrap(), CONTENT);
        assert_eq!(fs::metadata(PATH).unwrap().mode() & 0o777, MODE);
        let names: Vec<_> = fs::read_dir("/tmp").unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["mine"]);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(mounts.matches(" nsnet ").count(), 1, "{mounts}");
        umount2(PATH, MntFlags::empty()).unwrap();
        assert_eq!(fs::read_to_string(PATH).unwrap(), "nameserver 203.0.113.1\n");
    }

    #[test]
    fn symlink_is_followed_even_below_the_first_directory_to_cover() {
        let test = "symlink_is_followed_even_below_the_first_directory_to_cover";
        if inside(NAMESPACES, module_path!(), test) {
            empty("/etc");
            empty("/tmp");
            fs::write("/tmp/stub.conf", "").unwrap();
            symlink("../tmp/stub.conf", PATH).unwrap();
            bind(&setup(Offload::NONE)).unwrap();
            assert_eq!(fs::read_to_string(PATH).unwrap(), CONTENT);
        }
    }

    #[test]
    fn missing_file_is_named_with_a_remedy() {
        if inside(NAMESPACES, module_path!(), "missing_file_is_named_with_a_remedy") {
            empty("/etc");
            let error = bind(&setup(Offload::NONE)).unwrap_err().to_string();
            assert!(error.starts_with("find /etc/resolv.conf: No such file"), "{error}");
            assert!(error.contains("an empty file suffices"), "{error}");
        }
    }

    #[test]
    fn written_file_replaces_a_symlink_and_spares_its_target() {
        let directory = std::env::temp_dir().join(format!("nsnet-resolv-conf-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let (target, path) = (directory.join("target"), directory.join("resolv.conf"));
        fs::write(&target, "untouched").unwrap();
        symlink(&target, &path).unwrap();
        write(&setup(Offload::NONE), &path).unwrap();
        write(&setup(Offload::NONE), &path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), CONTENT);
        assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn failed_write_leaves_others_files_and_none_of_its_own() {
        let directory = std::env::temp_dir().join(format!("nsnet-resolv-conf-spared-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("resolv.conf");
        let in_the_way = path.with_extension(format!("nsnet-{}", std::process::id()));
        fs::write(&in_the_way, "not ours").unwrap();
        let error = write(&setup(Offload::NONE), &path).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
        assert_eq!(fs::read_to_string(&in_the_way).unwrap(), "not ours");
        fs::remove_file(&in_the_way).unwrap();
        fs::create_dir(&path).unwrap();
        let error = write(&setup(Offload::NONE), &path).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EISDIR), "{error}");
        assert!(!in_the_way.exists());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn directory_that_is_missing_is_named() {
        let error = write(&setup(Offload::NONE), "/proc/no-such/resolv.conf").unwrap_err().to_string();
        assert!(error.starts_with("write /proc/no-such/resolv.conf: No such file"), "{error}");
    }
}
