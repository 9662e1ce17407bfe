package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// identity is whom Postgres's programs run as.
type identity struct {
	// change is set when this process is root and they run as uid and gid.
	change   bool
	uid, gid uint32
	name     string
	// search is set when that user cannot enter a folder on the way to the
	// binaries or the data.
	search bool
}

// runAs decides whom Postgres runs as: nobody else than this process's user,
// unless that is root, which Postgres refuses.
func runAs(cfg Config) (identity, error) {
	if os.Geteuid() != 0 {
		return identity{}, nil
	}
	name := cfg.User
	if name == "" {
		name = "nobody"
	}
	u, err := user.Lookup(name)
	if err != nil {
		return identity{}, fmt.Errorf("finding the user that Postgres is to run as, because it refuses to run as root: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return identity{}, fmt.Errorf("the id of user %s: %w", name, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return identity{}, fmt.Errorf("the group of user %s: %w", name, err)
	}
	if uid == 0 {
		return identity{}, fmt.Errorf("the user %s is root, which Postgres refuses to run as: name another one", name)
	}
	id := identity{change: true, uid: uint32(uid), gid: uint32(gid), name: name}
	for _, path := range []string{filepath.Join(cfg.BinDir, "postgres"), cfg.DataDir} {
		ok, err := id.canReach(path)
		if err != nil {
			return identity{}, fmt.Errorf("looking whether user %s can reach %s: %w", name, path, err)
		}
		id.search = id.search || !ok
	}
	return id, nil
}

// canReach says whether the user may enter every folder above path, following
// links. Access control lists are not looked at: they can only make it answer
// no where yes would do.
func (id identity) canReach(path string) (bool, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false, err
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return false, err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return false, fmt.Errorf("no owner is known for %s", dir)
		}
		enter := fs.FileMode(0o001)
		switch {
		case stat.Uid == id.uid:
			enter = 0o100
		case stat.Gid == id.gid:
			enter = 0o010
		}
		if info.Mode().Perm()&enter == 0 {
			return false, nil
		}
		if dir == filepath.Dir(dir) {
			return true, nil
		}
	}
}

// own gives a folder and all it holds to the user, and refuses one that this
// process's user cannot use.
func (id identity) own(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("looking through the data folder: %w", err)
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return fmt.Errorf("looking through the data folder: %w", err)
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		want := uint32(os.Geteuid())
		if id.change {
			want = id.uid
		}
		if ok && stat.Uid == want {
			// Postgres made what is inside: looking at the folder itself is enough.
			if path != dir && entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if !id.change {
			if entry.Name() == "lost+found" {
				return filepath.SkipDir
			}
			return fmt.Errorf("%s belongs to user id %d and this process runs as %d: run it as that user, or give the folder to this one (chown -R)", path, stat.Uid, want)
		}
		return id.chown(path)
	})
}

// chown gives one file to the user.
func (id identity) chown(path string) error {
	if !id.change {
		return nil
	}
	if err := os.Lchown(path, int(id.uid), int(id.gid)); err != nil {
		return fmt.Errorf("giving the data folder to user %s, as whom Postgres runs: %w", id.name, err)
	}
	return nil
}

// secbitNoSetuidFixup is SECBIT_NO_SETUID_FIXUP of linux/securebits.h.
const secbitNoSetuidFixup = 1 << 2

// start starts cmd as the user, so that it gets SIGINT (a fast shutdown for
// Postgres) when this process dies. The channel delivers its end.
func (id identity) start(cmd *exec.Cmd) (<-chan error, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGINT}
	if id.change {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: id.uid, Gid: id.gid}
	}
	if id.search {
		// A clone in root's home, or Nomad's data folder, lies below folders of
		// mode 0700 that the user cannot enter, and their modes are not ours to
		// change. CAP_DAC_READ_SEARCH lets Postgres pass them and survives exec
		// as an ambient capability. What it gives away: Postgres can read every
		// file, which SQL can ask of it only as a superuser, and none can log in.
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_DAC_READ_SEARCH}
	}
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The kernel sends the death signal when the thread that forked ends, not
		// the process: this thread must stay until the child is gone.
		runtime.LockOSThread()
		if id.search {
			// Postgres finds itself with access(2), which ignores capabilities
			// unless this bit is set. It is the thread's, so the thread is not
			// given back: it ends with this goroutine.
			if err := unix.Prctl(unix.PR_SET_SECUREBITS, secbitNoSetuidFixup, 0, 0, 0); err != nil {
				started <- id.noSearch(err)
				return
			}
		} else {
			defer runtime.UnlockOSThread()
		}
		if err := cmd.Start(); err != nil {
			if id.search && errors.Is(err, syscall.EPERM) {
				err = id.noSearch(err)
			}
			started <- err
			return
		}
		started <- nil
		ended <- cmd.Wait()
	}()
	return ended, <-started
}

func (id identity) noSearch(err error) error {
	return fmt.Errorf("user %s cannot enter a folder above the binaries or the data, and this process may not hand on CAP_DAC_READ_SEARCH: put both below folders that everybody may enter, or run as an ordinary user: %w", id.name, err)
}

// run runs cmd to its end, or kills it when ctx ends first.
func (id identity) run(ctx context.Context, cmd *exec.Cmd) error {
	ended, err := id.start(cmd)
	if err != nil {
		return err
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		// Ends when it is already over; nothing else can be done about it.
		_ = cmd.Process.Kill()
		err := <-ended
		return errors.Join(ctx.Err(), err)
	}
}
