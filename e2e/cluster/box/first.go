package box

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a machine's first process is told, and asked later.
type (
	machineSpec struct {
		Config
		Dir   string // the machine's folder in the box
		Disk  string // below which its own folders are
		Group string // its control group
	}
	programSpec struct {
		Name  string
		Args  []string
		Env   []string
		Input string
	}
	stopSpec struct {
		Name   string
		Signal syscall.Signal
	}
	runAnswer struct {
		Output string
		Status int
	}
)

const (
	specVariable = "MARQUEE_BOX_MACHINE"
	// joinedVariable says that the process is in its control group.
	joinedVariable = "MARQUEE_BOX_JOINED"
	searchPath     = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// firstFD is the listening socket.
	firstFD = 3
)

// first is a machine's first process: it starts programs, and waits for those
// whose parents have ended, as every first process must.
type first struct {
	mu       sync.Mutex
	children map[int]chan syscall.WaitStatus
	started  map[string]*child
}

type child struct {
	pid   int
	ended chan syscall.WaitStatus
}

// runMachine returns only when it fails.
func runMachine() error {
	var spec machineSpec
	if err := json.Unmarshal([]byte(os.Getenv(specVariable)), &spec); err != nil {
		return fmt.Errorf("read what this machine is: %w", err)
	}
	if os.Getenv(joinedVariable) == "" {
		return spec.join()
	}
	if err := spec.enter(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("name the machine: %w", err)
	}
	socket := os.NewFile(firstFD, "first.sock")
	listener, err := net.FileListener(socket)
	if err != nil {
		return fmt.Errorf("take over the socket: %w", err)
	}
	socket.Close()
	f := &first{children: map[int]chan syscall.WaitStatus{}, started: map[string]*child{}}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	go func() {
		for range children {
			f.reap()
		}
	}()
	mux := http.NewServeMux()
	mux.Handle("/run", handle(f.run))
	mux.Handle("/start", handle(f.start))
	mux.Handle("/stop", handle(f.stop))
	mux.Handle("/running", handle(f.running))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	return server.Serve(listener)
}

func handle[Q, A any](answer func(context.Context, Q) (A, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var question Q
		err := json.NewDecoder(r.Body).Decode(&question)
		if err == nil {
			var a A
			if a, err = answer(r.Context(), question); err == nil {
				err = json.NewEncoder(w).Encode(a)
			}
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
}

// reap collects all children that have ended.
func (f *first) reap() {
	for {
		// Under the lock a child cannot end before it is known.
		f.mu.Lock()
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if ended, ours := f.children[pid]; pid > 0 && ours {
			ended <- status
			delete(f.children, pid)
		}
		f.mu.Unlock()
		if pid <= 0 && !errors.Is(err, syscall.EINTR) {
			return
		}
	}
}

func (f *first) spawn(p programSpec, input, output *os.File) (*child, error) {
	path, err := look(p.Args)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	pid, err := syscall.ForkExec(path, p.Args, &syscall.ProcAttr{
		Dir: "/", Env: p.Env,
		Files: []uintptr{input.Fd(), output.Fd(), output.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	c := &child{pid: pid, ended: make(chan syscall.WaitStatus, 1)}
	f.children[pid] = c.ended
	return c, nil
}

func look(args []string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("no program is named")
	}
	if filepath.IsAbs(args[0]) {
		return args[0], nil
	}
	for _, dir := range filepath.SplitList(searchPath) {
		if path := filepath.Join(dir, args[0]); unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not in %s", args[0], searchPath)
}

func (f *first) run(ctx context.Context, p programSpec) (runAnswer, error) {
	input, write, err := os.Pipe()
	if err != nil {
		return runAnswer{}, err
	}
	defer input.Close()
	read, output, err := os.Pipe()
	if err != nil {
		write.Close()
		return runAnswer{}, err
	}
	defer read.Close()
	c, err := f.spawn(p, input, output)
	output.Close()
	if err != nil {
		write.Close()
		return runAnswer{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-c.pid, syscall.SIGKILL) }) // a session of its own
	defer stop()
	var writing sync.WaitGroup
	defer writing.Wait()
	writing.Go(func() {
		_, _ = io.WriteString(write, p.Input) // it need not read all
		write.Close()
	})
	var text bytes.Buffer
	if _, err := text.ReadFrom(read); err != nil {
		return runAnswer{}, err
	}
	status := <-c.ended
	if status.Signaled() {
		return runAnswer{Output: text.String(), Status: 128 + int(status.Signal())}, nil
	}
	return runAnswer{Output: text.String(), Status: status.ExitStatus()}, nil
}

func (f *first) start(_ context.Context, p programSpec) (struct{}, error) {
	if c := f.named(p.Name); c != nil {
		return struct{}{}, fmt.Errorf("%s runs already", p.Name)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return struct{}{}, err
	}
	defer null.Close()
	output, err := os.OpenFile(filepath.Join("/var/log", p.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return struct{}{}, err
	}
	defer output.Close()
	c, err := f.spawn(p, null, output)
	if err != nil {
		return struct{}{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started[p.Name] = c
	return struct{}{}, nil
}

// named is a started program that has not ended; nil when there is none.
func (f *first) named(name string) *child {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.started[name]
	if c == nil || f.children[c.pid] != c.ended {
		return nil
	}
	return c
}

func (f *first) stop(ctx context.Context, s stopSpec) (struct{}, error) {
	c := f.named(s.Name)
	if c == nil {
		return struct{}{}, fmt.Errorf("%s does not run", s.Name)
	}
	if err := syscall.Kill(c.pid, s.Signal); err != nil {
		return struct{}{}, fmt.Errorf("stop %s: %w", s.Name, err)
	}
	select {
	case status := <-c.ended:
		c.ended <- status // for who asks next
		return struct{}{}, nil
	case <-ctx.Done():
		return struct{}{}, fmt.Errorf("stop %s: %w", s.Name, ctx.Err())
	}
}

func (f *first) running(context.Context, struct{}) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := []string{}
	for name, c := range f.started {
		if f.children[c.pid] == c.ended {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// join moves this process into the machine's control group and makes that the
// topmost one it sees. A thread alone can do that: the program is started once
// more from it, in its place, and so has no other.
func (s machineSpec) join() error {
	if err := joinGroups(s.Group); err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("part from the host's control groups: %w", err)
	}
	err := unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), joinedVariable+"=1")) //nolint:gosec // ourselves
	return fmt.Errorf("start again in the control group: %w", err)
}

// enter makes the machine's root folder of pieces of the host's, and goes into
// it: nothing else of the host is left.
func (s machineSpec) enter() error {
	root := filepath.Join(s.Dir, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("part from the box's mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("make the root folder: %w", err)
	}
	r := rootFolder{root}
	steps := []func() error{
		r.programs,
		func() error { return r.mount("proc", "/proc", "proc", "") },
		func() error { return r.mount("sysfs", "/sys", "sysfs", "") },
		r.controlGroups,
		r.devices,
		func() error { return r.settings(s.Name, s.Address.String()) },
		func() error { return r.mount("tmpfs", "/tmp", "tmpfs", "mode=1777") },
		func() error { return r.mount("tmpfs", "/run", "tmpfs", "mode=755") },
		func() error { return r.bind(filepath.Join(s.Dir, "log"), "/var/log") },
		func() error { return r.own(s) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("make the root folder: %w", err)
		}
	}
	return r.pivot()
}

// rootFolder is a root folder under construction.
type rootFolder struct{ path string }

func (r rootFolder) in(path string) string { return filepath.Join(r.path, path) }

// mount makes the mount point too.
func (r rootFolder) mount(source, path, kind, data string) error {
	if err := os.MkdirAll(r.in(path), 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, r.in(path), kind, 0, data); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	return nil
}

// bind shows a file or folder of the box at path.
func (r rootFolder) bind(from, path string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		if err := os.MkdirAll(filepath.Dir(r.in(path)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(r.in(path), nil, 0o644); err != nil {
			return err
		}
	} else if err := os.MkdirAll(r.in(path), 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, r.in(path), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	return nil
}

func (r rootFolder) bindReadOnly(from, path string) error {
	if err := r.bind(from, path); err != nil {
		return err
	}
	if err := unix.Mount("", r.in(path), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}

// programs are the host's, without those that its owner added.
func (r rootFolder) programs() error {
	if err := r.bindReadOnly("/usr", "/usr"); err != nil {
		return err
	}
	if err := r.mount("tmpfs", "/usr/local/bin", "tmpfs", "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		info, err := os.Lstat(dir)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			return err
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(dir)
			if err != nil {
				return err
			}
			if err := os.Symlink(target, r.in(dir)); err != nil {
				return err
			}
		default:
			if err := r.bindReadOnly(dir, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r rootFolder) devices() error {
	if err := r.mount("tmpfs", "/dev", "tmpfs", "mode=755"); err != nil {
		return err
	}
	for _, device := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := r.bind(filepath.Join("/dev", device), filepath.Join("/dev", device)); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"} {
		if err := os.Symlink(target, filepath.Join(r.in("/dev"), link)); err != nil {
			return err
		}
	}
	if err := r.mount("tmpfs", "/dev/shm", "tmpfs", "mode=1777"); err != nil {
		return err
	}
	return r.mount("devpts", "/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620")
}

// settings are few and read-only to the host: what programs look up.
func (r rootFolder) settings(name, address string) error {
	if err := os.MkdirAll(r.in("/etc"), 0o755); err != nil {
		return err
	}
	for _, file := range []string{"passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf", "localtime", "os-release", "protocols", "services"} {
		text, err := os.ReadFile(filepath.Join("/etc", file))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(r.in("/etc"), file), text, 0o644); err != nil {
			return err
		}
	}
	for file, text := range map[string]string{
		"hostname":    name + "\n",
		"hosts":       fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", address, name),
		"resolv.conf": "",
	} {
		if err := os.WriteFile(filepath.Join(r.in("/etc"), file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if _, err := os.Stat("/etc/ssl"); err == nil {
		return r.bindReadOnly("/etc/ssl", "/etc/ssl")
	}
	return nil
}

// ownPaths are the machine's own folders and the files it was given.
func (s machineSpec) ownPaths() (folders, files []string) {
	for _, folder := range s.Folders {
		folders = append(folders, folder.Path)
	}
	for path := range s.Files {
		files = append(files, path)
	}
	slices.Sort(folders) // those that hold others first
	slices.Sort(files)
	return folders, files
}

func (r rootFolder) own(s machineSpec) error {
	folders, files := s.ownPaths()
	for _, path := range folders {
		if err := r.bind(filepath.Join(s.Disk, path), path); err != nil {
			return err
		}
	}
	for _, path := range files {
		if err := r.bindReadOnly(s.Files[path], path); err != nil {
			return err
		}
	}
	return nil
}

func (r rootFolder) pivot() error {
	old := r.in("/.box")
	if err := os.Mkdir(old, 0o700); err != nil {
		return err
	}
	if err := unix.PivotRoot(r.path, old); err != nil {
		return fmt.Errorf("go into the root folder: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/.box", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the box's root folder: %w", err)
	}
	return os.Remove("/.box")
}
