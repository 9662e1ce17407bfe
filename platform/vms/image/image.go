// Package image builds the disk that virtual machines start from: a Debian with
// the agents in it, its kernel and a small initial file system, without root's
// loop devices, in a folder named after everything that went into it.
package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/marquee-ads/marquee/platform/files"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/tools"
)

//go:embed files
var embedded embed.FS

// suite is the Debian that machines run.
const suite = "bookworm"

// size is the disk's; it is sparse, and a machine's own may be larger.
const size = "4G"

// packages are what a machine has beside Debian's essential ones.
func packages() []string {
	return []string{
		"systemd-sysv", "udev", "dbus", "linux-image-cloud-amd64", "kmod", "procps", "login", "passwd", "e2fsprogs",
		"iproute2", "iputils-ping", "netbase", "nftables", "iptables", "openssh-server", "chrony", "logrotate",
		"ca-certificates", "curl", "containernetworking-plugins", "postgresql-15",
	}
}

// enabled are the units that start with the machine. The agents wait for their
// configuration, which the seed writes.
func enabled() []string {
	return []string{"systemd-networkd", "ssh", "nftables", "chrony", "marquee-seed", "consul", "nomad", "artifactd"}
}

// Image is a finished image.
type Image struct {
	Stamp  string    `json:"stamp"`  // over all that went in: 12 hex digits
	Disk   string    `json:"disk"`   // qcow2, an ext4 without partitions labelled root
	Kernel string    `json:"kernel"` //
	Initrd string    `json:"initrd"` //
	Built  time.Time `json:"built"`
}

// Folder is where a checkout keeps its images.
func Folder(root string) string { return filepath.Join(root, ".marquee", "images") }

// Open is the finished image of a stamp.
func Open(root, stamp string) (Image, error) {
	dir := filepath.Join(Folder(root), stamp)
	text, err := os.ReadFile(filepath.Join(dir, "image.json"))
	if err != nil {
		return Image{}, fmt.Errorf("open the image %s: %w", stamp, err)
	}
	var i Image
	if err := json.Unmarshal(text, &i); err != nil {
		return Image{}, fmt.Errorf("open the image %s: %w", stamp, err)
	}
	i.Kernel, i.Initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
	i.Disk = filepath.Join(dir, "marquee-"+i.Stamp+".qcow2")
	return i, nil
}

// Options say how an image is built.
type Options struct {
	Root     string         // of the checkout
	Sources  string         // file with APT sources of the suite; "" is this machine's own where they fit
	Fresh    bool           // build even where one with the same stamp is there, for newer packages
	Progress tools.Progress // may be nil
}

func (o Options) say(format string, args ...any) {
	if o.Progress != nil {
		o.Progress(fmt.Sprintf(format, args...))
	}
}

// Ensure builds the image of this checkout, or finds the one that was built from
// the same inputs: package list, files, units and programs. Newer packages of
// the same Debian are no reason for another one; Options.Fresh is. An image that
// was not finished is never used, and the next call removes it.
func Ensure(ctx context.Context, o Options) (Image, error) {
	in, err := gather(ctx, o)
	if err != nil {
		return Image{}, err
	}
	stamp, err := in.stamp()
	if err != nil {
		return Image{}, fmt.Errorf("stamp the image: %w", err)
	}
	if err := os.MkdirAll(Folder(o.Root), 0o755); err != nil {
		return Image{}, fmt.Errorf("make the images' folder: %w", err)
	}
	// One process builds at a time.
	lock, err := files.Lock(ctx, filepath.Join(Folder(o.Root), "lock"), func() {
		o.say("another process builds an image: waiting for it")
	})
	if err != nil {
		return Image{}, fmt.Errorf("build the machines' image: %w", err)
	}
	defer lock.Close()
	if found, err := Open(o.Root, stamp); err == nil && !o.Fresh {
		return found, nil
	}
	return build(ctx, o, in, stamp)
}

// inputs are all that an image is made of but Debian's packages.
type inputs struct {
	programs map[string]string // in /usr/local/bin: name to path here
	initrd   string            // path of the program
	files    map[string]string // path in the machine to path here
}

// gather builds or finds the programs and lists the files.
func gather(ctx context.Context, o Options) (inputs, error) {
	in := inputs{programs: map[string]string{}, files: map[string]string{}}
	for _, name := range []string{tools.Consul, tools.Nomad} {
		path, err := tools.Ensure(ctx, name, o.Progress)
		if err != nil {
			return in, fmt.Errorf("for the machines' image: %w", err)
		}
		in.programs[name] = path
	}
	built, err := release.Build(ctx, "artifactd", "initrd")
	if err != nil {
		return in, fmt.Errorf("for the machines' image: %w", err)
	}
	in.programs["artifactd"], in.initrd = built["artifactd"].Path, built["initrd"].Path

	modules := filepath.Join(o.Root, "terraform", "modules")
	units, err := filepath.Glob(filepath.Join(modules, "node", "systemd", "*"))
	if err != nil || len(units) == 0 {
		return in, fmt.Errorf("for the machines' image: no units in %s: is the checkout whole?", filepath.Join(modules, "node", "systemd"))
	}
	units = append(units, filepath.Join(modules, "libvirt", "marquee-seed.service"))
	for _, unit := range units {
		in.files["/etc/systemd/system/"+filepath.Base(unit)] = unit
	}
	in.files["/etc/sysusers.d/marquee.conf"] = filepath.Join(modules, "node", "templates", "sysusers.conf")
	return in, nil
}

// stamp is a hash over the inputs.
func (in inputs) stamp() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s\n%q\n%q\n", suite, size, packages(), enabled())
	add := func(name string, r io.Reader) error {
		one := sha256.New()
		if _, err := io.Copy(one, r); err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %x\n", name, one.Sum(nil))
		return nil
	}
	if err := fs.WalkDir(embedded, "files", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := embedded.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		return add(path, f)
	}); err != nil {
		return "", err
	}
	here := map[string]string{"initrd": in.initrd}
	for name, path := range in.programs {
		here["/usr/local/bin/"+name] = path
	}
	for name, path := range in.files {
		here[name] = path
	}
	names := make([]string, 0, len(here))
	for name := range here {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		f, err := os.Open(here[name])
		if err != nil {
			return "", err
		}
		err = add(name, f)
		f.Close()
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// build makes the image beside its place and renames it into it.
func build(ctx context.Context, o Options, in inputs, stamp string) (Image, error) {
	left, err := filepath.Glob(filepath.Join(Folder(o.Root), ".building-*"))
	if err != nil {
		return Image{}, err
	}
	for _, dir := range left {
		if err := remove(ctx, dir); err != nil {
			return Image{}, err
		}
	}
	work, err := os.MkdirTemp(Folder(o.Root), ".building-")
	if err != nil {
		return Image{}, fmt.Errorf("make a folder for the image: %w", err)
	}
	defer func() {
		// Also after an interruption, which is why ctx is not asked.
		if err := remove(context.WithoutCancel(ctx), work); err != nil {
			o.say("%v", err)
		}
	}()
	// mmdebstrap's package manager runs as a user of its own.
	if err := os.Chmod(work, 0o755); err != nil {
		return Image{}, fmt.Errorf("make a folder for the image: %w", err)
	}
	if err := stage(work, in); err != nil {
		return Image{}, fmt.Errorf("stage the image's files: %w", err)
	}
	archive, err := debian(ctx, o, work)
	if err != nil {
		return Image{}, err
	}
	if err := customize(ctx, o, work, archive); err != nil {
		return Image{}, err
	}
	final := filepath.Join(Folder(o.Root), stamp)
	out := filepath.Join(work, "out")
	initrd := filepath.Join(out, "initrd")
	if err := writeInitrd(ctx, in.initrd, filepath.Join(out, "modules"), initrd); err != nil {
		return Image{}, err
	}
	disk := filepath.Join(out, "marquee-"+stamp+".qcow2")
	convert := exec.CommandContext(ctx, "qemu-img", "convert", "-O", "qcow2", filepath.Join(out, "disk.raw"), disk)
	if err := runWith(ctx, o, convert, "", "writing the disk"); err != nil {
		return Image{}, err
	}
	if err := errors.Join(os.Remove(filepath.Join(out, "disk.raw")), os.RemoveAll(filepath.Join(out, "modules"))); err != nil {
		return Image{}, fmt.Errorf("tidy the image: %w", err)
	}
	text, err := json.MarshalIndent(Image{Stamp: stamp, Built: time.Now().UTC().Truncate(time.Second)}, "", "  ")
	if err != nil {
		return Image{}, err
	}
	if err := os.WriteFile(filepath.Join(out, "image.json"), text, 0o644); err != nil {
		return Image{}, fmt.Errorf("finish the image: %w", err)
	}
	if err := os.RemoveAll(final); err != nil {
		return Image{}, fmt.Errorf("replace the image: %w", err)
	}
	if err := os.Rename(out, final); err != nil {
		return Image{}, fmt.Errorf("finish the image: %w", err)
	}
	return Open(o.Root, stamp)
}

// remove removes what a build wrote, which for an ordinary user belongs to other
// users of its user namespace.
func remove(ctx context.Context, dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || os.Getuid() == 0 {
		return err
	}
	argv := append(namespace(), "rm", "-rf", dir)
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("remove what an interrupted build left in %s: %w: %s", dir, err, bytes.TrimSpace(out))
	}
	return nil
}

// namespace is the command in front of what needs root's rights over the files
// of the image, and mounts that nobody else sees and that go away with it.
func namespace() []string {
	line := []string{"unshare", "--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork", "--kill-child=KILL"}
	if os.Getuid() != 0 {
		line = append(line, "--user", "--map-root-user", "--map-auto")
	}
	return append(line, "--")
}

// stage lays out what is copied into the machine, and the scripts.
func stage(work string, in inputs) error {
	copies := map[string]string{}
	for name, path := range in.programs {
		copies["/usr/local/bin/"+name] = path
	}
	for to, from := range in.files {
		copies[to] = from
	}
	for to, from := range copies {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(to, "/usr/local/bin/") {
			mode = 0o755
		}
		if err := copyFile(from, filepath.Join(work, "stage", to), mode); err != nil {
			return err
		}
	}
	for name, mode := range map[string]os.FileMode{"customize.sh": 0o755, "masked": 0o644, "modprobe.conf": 0o644} {
		text, err := embedded.ReadFile("files/" + name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(work, name), text, mode); err != nil {
			return err
		}
	}
	return os.Mkdir(filepath.Join(work, "out"), 0o755)
}

func copyFile(from, to string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		return errors.Join(err, dst.Close())
	}
	return dst.Close()
}

// debian installs the packages into an archive, which later images start from:
// our own programs change more often than the list of packages.
func debian(ctx context.Context, o Options, work string) (archive string, err error) {
	args := []string{
		"mmdebstrap", "--mode=root", "--format=tar", "--variant=minbase", "--skip=output/dev",
		"--include=" + strings.Join(packages(), ","),
		`--aptopt=APT::Install-Recommends "false"`,
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		// Postgres compiles queries with LLVM, 140 MB that short queries never use;
		// without its plugin it does not try.
		"--dpkgopt=path-exclude=/usr/lib/*/libLLVM*", "--dpkgopt=path-exclude=/usr/lib/*/libz3.so*",
		"--dpkgopt=path-exclude=/usr/lib/postgresql/*/lib/llvmjit.so", "--dpkgopt=path-exclude=/usr/lib/postgresql/*/lib/bitcode/*",
		// The jobs make their own databases.
		`--essential-hook=mkdir -p "$1/etc/postgresql-common" && echo "create_main_cluster = false" > "$1/etc/postgresql-common/createcluster.conf"`,
		suite,
	}
	sum := sha256.Sum256([]byte(strings.Join(args, "\n")))
	archive = filepath.Join(Folder(o.Root), "debian-"+hex.EncodeToString(sum[:6])+".tar")
	if _, err := os.Stat(archive); err == nil && !o.Fresh {
		return archive, nil
	}
	sources, err := o.sources()
	if err != nil {
		return "", err
	}
	out := filepath.Join(work, "debian.tar")
	args = slices.Concat(namespace(), args, []string{out}, sources)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(environ(), "INITRD=No", "TMPDIR="+work) // initramfs-tools makes no initrd
	if err := runWith(ctx, o, cmd, filepath.Join(Folder(o.Root), "debian.log"), "installing Debian (about a minute)"); err != nil {
		return "", err
	}
	older, err := filepath.Glob(filepath.Join(Folder(o.Root), "debian-*.tar"))
	if err != nil {
		return "", err
	}
	for _, path := range older {
		if err := os.Remove(path); err != nil {
			return "", fmt.Errorf("remove an older Debian: %w", err)
		}
	}
	if err := os.Rename(out, archive); err != nil {
		return "", fmt.Errorf("keep the installed Debian: %w", err)
	}
	return archive, nil
}

func environ() []string {
	return append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C.UTF-8")
}

// customize makes the disk of an installed Debian and what is staged.
func customize(ctx context.Context, o Options, work, archive string) error {
	args := append(namespace(), filepath.Join(work, "customize.sh"), archive)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = work
	cmd.Env = append(environ(), "SIZE="+size, "ENABLE="+strings.Join(enabled(), " "))
	return runWith(ctx, o, cmd, "", "making a machine of it (about 10 seconds)")
}

// sources are the arguments that tell mmdebstrap where packages come from:
// nothing, for its own default, where this machine's sources are for another
// release.
func (o Options) sources() ([]string, error) {
	if o.Sources != "" {
		if _, err := os.Stat(o.Sources); err != nil {
			return nil, fmt.Errorf("the APT sources for the image: %w", err)
		}
		return []string{o.Sources}, nil
	}
	for _, path := range []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"} {
		text, err := os.ReadFile(path)
		if err == nil && bytes.Contains(text, []byte(suite)) {
			return []string{path}, nil
		}
	}
	return nil, nil
}

// runWith runs a command to its end in a process group of its own, which ends
// with ctx, and says every few seconds what it does.
func runWith(ctx context.Context, o Options, cmd *exec.Cmd, log, what string) error {
	var output bytes.Buffer
	var w io.Writer = &output
	if log != "" {
		f, err := os.Create(log)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		defer f.Close()
		w = io.MultiWriter(&output, f)
	}
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	o.say("%s…", what)
	ended := make(chan struct{})
	var ticking sync.WaitGroup
	ticking.Go(func() {
		start := time.Now()
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				o.say("%s… %d s", what, int(time.Since(start).Seconds()))
			}
		}
	})
	err := cmd.Run()
	close(ended)
	ticking.Wait()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	default:
		return fmt.Errorf("%s: %w\n%s", what, err, tail(output.String(), 15))
	}
}

// tail is the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}

// Prune removes the images that keep does not name, but for the newest.
func Prune(root string, keep func(stamp string) bool) error {
	paths, err := filepath.Glob(filepath.Join(Folder(root), "*", "image.json"))
	if err != nil {
		return err
	}
	var found []Image
	for _, path := range paths {
		if i, err := Open(root, filepath.Base(filepath.Dir(path))); err == nil {
			found = append(found, i)
		}
	}
	slices.SortFunc(found, func(a, b Image) int { return b.Built.Compare(a.Built) })
	for n, i := range found {
		if n == 0 || keep(i.Stamp) {
			continue
		}
		if err := os.RemoveAll(filepath.Dir(i.Disk)); err != nil {
			return fmt.Errorf("remove an old image: %w", err)
		}
	}
	return nil
}
