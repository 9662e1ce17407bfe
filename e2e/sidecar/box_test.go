package sidecar

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The box is this test's own program, started again in namespaces of its own:
// network, mounts, processes. What it does to routes, firewall rules, /run or
// /var/lib/cni happens there alone, and all that runs in it ends when its first
// process does.
const (
	// boxVariable tells the second start where the box has its folder.
	boxVariable = "MARQUEE_SIDECAR_BOX"

	// Nomad gives this address to jobs; it is from the range for benchmarks
	// (RFC 2544), which nobody routes.
	boxInterface = "mesh0"
	boxAddress   = "198.18.0.1/24"
)

func inBox() bool { return os.Getenv(boxVariable) != "" }

// runBox runs this very test in a box, with its output on ours, and fails when
// it fails. inside is where the box has its folder.
func runBox(t *testing.T, ctx context.Context, inside string) {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	run := "^" + t.Name() + "$"
	if _, scenario, some := strings.Cut(flag.Lookup("test.run").Value.String(), "/"); some {
		run += "/" + scenario
	}
	cmd := exec.CommandContext(ctx, program, "-test.run="+run, "-test.v=true", "-test.count=1", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), boxVariable+"="+inside)
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	read, write, err := os.Pipe()
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = write, write

	// Pdeathsig is sent when the thread ends that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	write.Close()
	if errors.Is(err, syscall.EPERM) {
		read.Close()
		t.Skipf("the sidecar test needs namespaces of its own, which root may not make here (%v): run it outside the container, or in one that is privileged", err)
	}
	require.NoError(t, err)
	var copying sync.WaitGroup
	copying.Go(func() {
		// Marked, so that whoever reads our output does not take the box's
		// results for ours.
		lines := bufio.NewReader(read)
		for {
			line, err := lines.ReadString('\n')
			if line != "" {
				fmt.Println("  box | " + strings.TrimRight(line, "\n"))
			}
			if err != nil {
				return
			}
		}
	})
	err = cmd.Wait()
	// All that held the other end died with the box.
	copying.Wait()
	read.Close()
	require.NoError(t, err, "the scenario in the box failed: see its output above")
}

// enterBox makes the namespaces that this process was started in what a cluster
// needs, and returns where folder is in them.
func enterBox(t *testing.T, folder string) string {
	t.Helper()
	mount := func(source, target, kind string, flags uintptr, data string) {
		t.Helper()
		require.NoError(t, unix.Mount(source, target, kind, flags, data), "mount %s on %s", kind, target)
	}
	mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	mount("proc", "/proc", "proc", 0, "")
	// A new /sys shows the box's interfaces. The old one goes with all that is
	// mounted below it: where Nomad sees no control groups it makes none on the
	// machine.
	for {
		err := unix.Unmount("/sys", unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) {
			break
		}
		require.NoError(t, err, "unmount /sys")
	}
	mount("sysfs", "/sys", "sysfs", 0, "")
	mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777")
	mount("tmpfs", "/run", "tmpfs", 0, "mode=755") // network namespaces, locks, CNI's addresses
	privateFolder(t, "/var/lib", "cni")
	// A short path: those of Unix sockets in allocations are limited.
	inside := os.Getenv(boxVariable)
	require.NoError(t, os.Mkdir(inside, 0o755))
	mount(folder, inside, "", unix.MS_BIND, "")

	// No route leads anywhere else.
	for _, command := range []string{
		"ip link set lo up",
		"ip link add " + boxInterface + " type veth peer name mesh1",
		"ip addr add " + boxAddress + " dev " + boxInterface,
		"ip link set " + boxInterface + " up",
		"ip link set mesh1 up",
	} {
		words := strings.Fields(command)
		out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
		require.NoError(t, err, "%s: %s", command, out)
	}
	return inside
}

// privateFolder gives this mount namespace an empty folder parent/name, without
// making one on the machine where there is none.
func privateFolder(t *testing.T, parent, name string) {
	t.Helper()
	target := filepath.Join(parent, name)
	if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
		// A new parent, into which everything that the old one holds is bound.
		staging := "/run/parent"
		require.NoError(t, os.Mkdir(staging, 0o755))
		require.NoError(t, unix.Mount("tmpfs", staging, "tmpfs", 0, "mode=755"))
		entries, err := os.ReadDir(parent)
		require.NoError(t, err)
		for _, e := range entries {
			require.NoError(t, bindEntry(filepath.Join(parent, e.Name()), filepath.Join(staging, e.Name()), e.Type()))
		}
		require.NoError(t, os.Mkdir(filepath.Join(staging, name), 0o755))
		require.NoError(t, unix.Mount(staging, parent, "", unix.MS_MOVE, ""))
		return
	}
	require.NoError(t, unix.Mount("tmpfs", target, "tmpfs", 0, "mode=755"))
}

func bindEntry(from, to string, kind os.FileMode) error {
	switch {
	case kind&os.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case kind.IsDir():
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
	default:
		if err := os.WriteFile(to, nil, 0o644); err != nil {
			return err
		}
	}
	return unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
}
