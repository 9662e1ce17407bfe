// Package vms makes a cluster of virtual machines on this host and takes it away
// again: it checks the host, builds the image, keeps the machines in a box of
// their own, lets Terraform make them, and waits until they are a cluster.
package vms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/marquee-ads/marquee/platform/environment"
	"github.com/marquee-ads/marquee/platform/files"
	"github.com/marquee-ads/marquee/platform/keys"
	"github.com/marquee-ads/marquee/platform/stack"
	"github.com/marquee-ads/marquee/platform/tools"
	"github.com/marquee-ads/marquee/platform/vms/box"
	"github.com/marquee-ads/marquee/platform/vms/image"
)

// Settings are what an environment of virtual machines is made of. They are kept
// beside its state, so that a second call changes only what it is told to.
type Settings struct {
	Servers      int    `json:"servers"`       // 1, 3, 5 or 7
	Clients      int    `json:"clients"`       // 0 to 100
	ServerMemory int    `json:"server_memory"` // MiB each
	ClientMemory int    `json:"client_memory"` // MiB each
	Network      string `json:"network"`       // the machines' own, a /24
	LibvirtURI   string `json:"libvirt_uri"`   // "" is a libvirt in a box of its own
	// Decided when the environment is made, and kept: another one would replace
	// every machine at once.
	DomainType string `json:"domain_type"` // kvm or qemu
	Image      string `json:"image"`       // the stamp
	// OlderImages are the stamps of machines that were made with another image,
	// by their names.
	OlderImages map[string]string `json:"older_images,omitempty"`
}

func defaults() Settings {
	return Settings{Servers: 3, Clients: 2, ServerMemory: 640, ClientMemory: 1536, Network: "10.77.0.0/24"}
}

// Config says which environment to make, and of what. Zero values of Want are
// the environment's own so far, and for a new one the defaults: 3 servers of
// 640 MiB and 2 clients of 1536 MiB in a box.
type Config struct {
	Root  string   // of the checkout
	Name  string   // of the environment
	Want  Settings //
	Image image.Options
	// NoClients asks for no clients at all, which Want.Clients cannot say.
	NoClients bool
	// Install lets missing packages be installed, which needs root.
	Install bool
	// Self is this program called so that it runs as the box's first process;
	// the folder is appended. See box.New.
	Self []string
	// Say receives a line of progress at least every few seconds.
	Say func(line string)
}

// Environment is one environment of virtual machines.
type Environment struct {
	config   Config
	dir      string
	box      *box.Box
	settings Settings
	made     bool     // settings were found: it has been made, or half made, before
	held     *os.File // the lock, while this process changes the environment
}

// ErrBroken says that the environment's settings cannot be read. Destroy works
// nevertheless.
var ErrBroken = errors.New("the environment is broken: marquee vms destroy removes it")

// Open reads what there is of an environment. Nothing is changed. With ErrBroken
// the environment is there, for Destroy.
func Open(c Config) (*Environment, error) {
	if err := environment.ValidName(c.Name); err != nil {
		return nil, err
	}
	if c.Say == nil {
		c.Say = func(string) {}
	}
	e := &Environment{config: c, dir: environment.Folder(c.Root, c.Name), settings: defaults()}
	var err error
	if e.box, err = box.New(filepath.Join(e.dir, "box"), c.Self...); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(e.settingsFile())
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("read the environment's settings: %w", err)
	default:
		e.made = true
		if err := json.Unmarshal(text, &e.settings); err != nil {
			e.settings = defaults()
			return e, fmt.Errorf("%w: %s: %w", ErrBroken, e.settingsFile(), err)
		}
	}
	return e, nil
}

func (e *Environment) settingsFile() string { return filepath.Join(e.dir, "vms.json") }

// Dir is the environment's folder; it is gone after Destroy.
func (e *Environment) Dir() string { return e.dir }

// Box is where the machines run; nil where they run in the host's own libvirt.
func (e *Environment) Box() *box.Box {
	if e.settings.LibvirtURI != "" {
		return nil
	}
	return e.box
}

// Settings are those of the last Up, and the defaults before the first.
func (e *Environment) Settings() Settings { return e.settings }

// Nodes are the machines' names, roles and addresses.
func (e *Environment) Nodes() []keys.Node {
	nodes := keys.Nodes(e.settings.Servers, e.settings.Clients)
	prefix, err := netip.ParsePrefix(e.settings.Network)
	if err != nil {
		return nodes
	}
	base := prefix.Masked().Addr().As4()
	counts := map[keys.Role]byte{}
	for i, n := range nodes {
		counts[n.Role]++
		address := base
		// As terraform/environments/local counts: servers .11…, clients .101….
		address[3] += counts[n.Role] + map[keys.Role]byte{keys.Server: 10, keys.Client: 100}[n.Role]
		nodes[i].Address = netip.AddrFrom4(address).String()
	}
	return nodes
}

// disks is the folder of the machines' disks and consoles. The host's own libvirt
// runs them as another user, who must not get at the keys: then it is apart.
func (e *Environment) disks() string {
	if e.settings.LibvirtURI != "" {
		return filepath.Join(e.config.Root, ".marquee", "machines", e.config.Name)
	}
	return filepath.Join(e.dir, "machines")
}

// SerialLog is what a machine writes to its console.
func (e *Environment) SerialLog(node string) string {
	return filepath.Join(e.disks(), "consoles", node+".log")
}

// merge takes what is wanted and refuses what cannot be.
func (e *Environment) merge() error {
	s, want := e.settings, e.config.Want
	if e.made && want.LibvirtURI != "" && want.LibvirtURI != s.LibvirtURI {
		return fmt.Errorf("the machines of %s run in %s and cannot move to %s: marquee vms destroy first", e.config.Name, or(s.LibvirtURI, "their own box"), want.LibvirtURI)
	}
	if e.made && want.Network != "" && want.Network != s.Network {
		return fmt.Errorf("the machines of %s have addresses in %s and cannot move to %s: marquee vms destroy first", e.config.Name, s.Network, want.Network)
	}
	take := func(to *int, from int) {
		if from != 0 {
			*to = from
		}
	}
	take(&s.Servers, want.Servers)
	take(&s.Clients, want.Clients)
	take(&s.ServerMemory, want.ServerMemory)
	take(&s.ClientMemory, want.ClientMemory)
	if e.config.NoClients {
		s.Clients = 0
	}
	// Machines that go take their image with them.
	nodes := keys.Nodes(s.Servers, s.Clients)
	maps.DeleteFunc(s.OlderImages, func(name, _ string) bool {
		return !slices.ContainsFunc(nodes, func(n keys.Node) bool { return n.Name == name })
	})
	s.LibvirtURI, s.Network = or(want.LibvirtURI, s.LibvirtURI), or(want.Network, s.Network)
	if err := s.valid(); err != nil {
		return err
	}
	e.settings = s
	return nil
}

func or(first, second string) string {
	if first != "" {
		return first
	}
	return second
}

func (s Settings) valid() error {
	switch s.Servers {
	case 1, 3, 5, 7:
	default:
		return fmt.Errorf("--servers %d: it must be 1, 3, 5 or 7, because a cluster is led by a majority", s.Servers)
	}
	if s.Clients < 0 || s.Clients > 100 {
		return fmt.Errorf("--clients %d: it must be 0 to 100", s.Clients)
	}
	if s.ServerMemory < 512 {
		return fmt.Errorf("--server-memory %d: a server needs 512 MiB", s.ServerMemory)
	}
	if s.ClientMemory < 640 {
		return fmt.Errorf("--client-memory %d: a client needs 640 MiB", s.ClientMemory)
	}
	prefix, err := netip.ParsePrefix(s.Network)
	if err != nil || !prefix.Addr().Is4() || prefix.Bits() != 24 || prefix != prefix.Masked() || !prefix.Addr().IsPrivate() {
		return fmt.Errorf("--network %s: it must be a private network of 256 addresses, such as 10.77.0.0/24", s.Network)
	}
	if s.LibvirtURI != "" && !strings.Contains(s.LibvirtURI, "://") {
		return fmt.Errorf("--libvirt-uri %s: it must be a libvirt address, such as qemu:///system", s.LibvirtURI)
	}
	return nil
}

// lock lets one process change the environment at a time. The kernel gives it
// back when its holder has died, and the Terraform that it ran: that is given the
// lock too, because it goes on when this process is killed.
func (e *Environment) lock() (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(e.dir), 0o755); err != nil {
		return nil, fmt.Errorf("make the environments' folder: %w", err)
	}
	// Beside the folder, which Destroy removes.
	f, err := os.OpenFile(e.lockFile(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the environment: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another marquee vms works on %s, or the Terraform that a killed one left: wait for it, or end it: %w", e.config.Name, err)
	}
	e.held = f
	return func() {
		e.held = nil
		f.Close()
	}, nil
}

func (e *Environment) lockFile() string {
	return filepath.Join(filepath.Dir(e.dir), "."+e.config.Name+".lock")
}

func (e *Environment) removeLock() error {
	if err := os.Remove(e.lockFile()); err != nil {
		return fmt.Errorf("remove the environment's lock: %w", err)
	}
	return nil
}

// Up makes the environment, or what is missing of it: the image, the box, the
// machines. It returns when Terraform has started them; Wait makes a cluster of
// them. What was half made before is finished. When ctx ends, what is there
// stays for the next Up or for Destroy.
func (e *Environment) Up(ctx context.Context) (*environment.Environment, error) {
	unlock, err := e.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if !e.made {
		if _, err := os.Stat(filepath.Join(e.dir, "environment.json")); err == nil {
			return nil, fmt.Errorf("%s is an environment of other machines: take another name", e.config.Name)
		}
	}
	if err := e.merge(); err != nil {
		return nil, err
	}
	if err := e.prepareHost(ctx); err != nil {
		return nil, err
	}
	program, err := tools.EnsureTerraform(ctx, "", e.config.Say)
	if err != nil {
		return nil, err
	}
	img, err := e.prepareImage(ctx)
	if err != nil {
		return nil, err
	}
	if e.settings.DomainType == "" {
		e.settings.DomainType = "kvm"
		e.config.Say("trying whether KVM works here")
		if err := tryKVM(ctx, kvmDevice, img.Kernel); err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			e.config.Say(fmt.Sprintf("no KVM, the machines are emulated: %v", err))
			e.settings.DomainType = "qemu"
		}
	}
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the environment's folder: %w", err)
	}
	if err := e.save(); err != nil {
		return nil, err
	}
	if _, err := keys.Ensure(environment.KeysFolder(e.config.Root, e.config.Name), e.Nodes(), time.Now()); err != nil {
		return nil, err
	}
	t := e.terraformOf(program)
	made, err := e.make(ctx, t, img)
	if err != nil {
		return nil, err
	}
	if err := made.Save(e.config.Root); err != nil {
		return nil, err
	}
	return environment.Load(e.config.Root, e.config.Name)
}

// save keeps the settings, at once or not at all.
func (e *Environment) save() error {
	text, err := json.MarshalIndent(e.settings, "", "  ")
	if err != nil {
		return err
	}
	if err := files.Replace(e.settingsFile(), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep the environment's settings: %w", err)
	}
	return nil
}

// prepareHost checks what the host must have.
func (e *Environment) prepareHost(ctx context.Context) error {
	s, inBox := e.settings, e.settings.LibvirtURI == ""
	if err := EnsurePackages(ctx, inBox, e.config.Install, e.config.Say); err != nil {
		return err
	}
	if inBox {
		if err := userBox(); err != nil {
			return err
		}
	} else if _, err := e.virsh(ctx, "uri"); err != nil {
		return fmt.Errorf("libvirt does not answer at %s: start it, or leave --libvirt-uri out for one in a box: %w", s.LibvirtURI, err)
	} else if !e.made {
		// libvirt's network is there when it was made before; in a box nothing is.
		if err := checkNetwork(s.Network); err != nil {
			return err
		}
	}
	available, err := availableMemory()
	if err != nil {
		return err
	}
	have, running := 0, e.made && (!inBox || e.box.Running())
	if running {
		// They may have been fewer; then the machines themselves say so.
		have = s.Servers*(s.ServerMemory+perMachine) + s.Clients*(s.ClientMemory+perMachine)
	}
	if err := checkMemory(available, s.Servers, s.ServerMemory, s.Clients, s.ClientMemory, have); err != nil {
		return err
	}
	if running {
		return nil
	}
	_, imageErr := image.Open(e.config.Root, s.Image)
	return checkDisk(e.config.Root, s.Servers+s.Clients, imageErr == nil)
}

// prepareImage is the image the environment was made with, else the checkout's.
func (e *Environment) prepareImage(ctx context.Context) (image.Image, error) {
	if e.settings.Image != "" {
		if found, err := image.Open(e.config.Root, e.settings.Image); err == nil {
			return found, nil
		}
		if _, err := os.Stat(e.stateFile()); err == nil {
			return image.Image{}, fmt.Errorf("the image that the machines of %s start from is gone from %s: marquee vms destroy, then up", e.config.Name, image.Folder(e.config.Root))
		}
	}
	o := e.config.Image
	o.Root, o.Progress = e.config.Root, e.config.Say
	made, err := image.Ensure(ctx, o)
	if err != nil {
		return image.Image{}, err
	}
	e.settings.Image = made.Stamp
	return made, e.pruneImages()
}

// pruneImages removes the images that no environment was made with.
func (e *Environment) pruneImages() error {
	used, err := e.usedImages()
	if err != nil {
		return err
	}
	return image.Prune(e.config.Root, func(stamp string) bool { return stamp == e.settings.Image || slices.Contains(used, stamp) })
}

// usedImages are the stamps of the images that environments of this checkout
// were made with.
func (e *Environment) usedImages() ([]string, error) {
	settings, err := filepath.Glob(filepath.Join(environment.Folder(e.config.Root, "*"), filepath.Base(e.settingsFile())))
	if err != nil {
		return nil, err
	}
	var stamps []string
	for _, path := range settings {
		other, err := Open(Config{Root: e.config.Root, Name: filepath.Base(filepath.Dir(path))})
		if err == nil && other.settings.Image != "" {
			stamps = append(stamps, other.settings.Image)
			stamps = slices.AppendSeq(stamps, maps.Values(other.settings.OlderImages))
		}
	}
	return stamps, nil
}

// make lets Terraform make the machines. A first attempt that fails is repeated
// once: from nothing where the environment is new, because nothing is lost then.
func (e *Environment) make(ctx context.Context, t *terraform, img image.Image) (*environment.Environment, error) {
	_, err := environment.Load(e.config.Root, e.config.Name)
	isNew := err != nil
	for attempt := 1; ; attempt++ {
		made, err := e.attempt(ctx, t, img)
		if err == nil || ctx.Err() != nil || attempt == 2 {
			return made, err
		}
		e.config.Say(fmt.Sprintf("trying once more: %v", err))
		if isNew && e.settings.LibvirtURI == "" {
			if err := e.wipe(ctx); err != nil {
				return nil, err
			}
		}
	}
}

// wipe takes the box and all that Terraform knows away.
func (e *Environment) wipe(ctx context.Context) error {
	if err := e.box.Remove(ctx); err != nil {
		return err
	}
	for _, path := range []string{e.stateFile(), e.stateFile() + ".backup", e.disks()} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove what an interrupted apply left: %w", err)
		}
	}
	return nil
}

func (e *Environment) attempt(ctx context.Context, t *terraform, img image.Image) (*environment.Environment, error) {
	uri, boxDir := e.settings.LibvirtURI, ""
	if uri == "" {
		if !e.box.Running() {
			e.config.Say("starting libvirt in a box of its own")
		}
		if err := e.box.Up(ctx); err != nil {
			return nil, err
		}
		var err error
		if uri, err = e.box.URI(); err != nil {
			return nil, err
		}
		boxDir = e.box.Dir()
	}
	if err := e.writeVariables(t, img, uri, boxDir); err != nil {
		return nil, err
	}
	s := e.settings
	e.config.Say(fmt.Sprintf("%s apply: %d servers, %d clients", t.program.Name, s.Servers, s.Clients))
	if err := t.init(ctx); err != nil {
		return nil, err
	}
	if err := e.apply(ctx, t); err != nil {
		return nil, err
	}
	var outdated []string
	if err := t.output(ctx, "outdated", &outdated); err != nil {
		return nil, err
	}
	if len(outdated) > 0 {
		e.config.Say(fmt.Sprintf("made with older keys or settings, and left as they are: %s (marquee vms replace makes one machine again)", strings.Join(outdated, ", ")))
	}
	var made environment.Environment
	if err := t.output(ctx, "environment", &made); err != nil {
		return nil, err
	}
	return &made, nil
}

// apply makes what is missing, after what an interrupted one left is gone; extra
// are further arguments of Terraform's.
func (e *Environment) apply(ctx context.Context, t *terraform, extra ...string) error {
	if err := e.checkState(); err != nil {
		return err
	}
	if err := e.tidy(ctx); err != nil {
		return err
	}
	return t.apply(ctx, extra...)
}

// writeVariables writes what terraform/environments/local takes.
func (e *Environment) writeVariables(t *terraform, img image.Image, uri, boxDir string) error {
	storage, consoles := e.storage(), filepath.Join(e.disks(), "consoles")
	for _, dir := range []string{storage, consoles} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the machines' folders: %w", err)
		}
	}
	var previous []string
	for _, stamp := range slices.Sorted(maps.Values(e.settings.OlderImages)) {
		older, err := image.Open(e.config.Root, stamp)
		if err != nil {
			return fmt.Errorf("the image of machines that run: %w", err)
		}
		previous = append(previous, older.Disk)
	}
	services, err := stack.ReadServices(e.config.Root)
	if err != nil {
		return err
	}
	s := e.settings
	variables := map[string]any{
		"name": e.config.Name, "keys": environment.KeysFolder(e.config.Root, e.config.Name),
		"servers": s.Servers, "clients": s.Clients, "server_memory": s.ServerMemory, "client_memory": s.ClientMemory,
		"network": s.Network, "libvirt_uri": uri, "domain_type": s.DomainType, "box": boxDir,
		"image": img.Disk, "kernel": img.Kernel, "initrd": img.Initrd, "previous_images": slices.Compact(append([]string{}, previous...)),
		"storage": storage, "logs": consoles, "data_jobs": stack.DataJobs(services),
	}
	if s.DomainType == "qemu" {
		// An emulated machine that had to wait for its host would otherwise take its
		// clock for broken, and read a slow one from then on.
		variables["cmdline"] = map[string]string{"mitigations": "off", "tsc": "reliable"}
	}
	text, err := json.MarshalIndent(variables, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(t.variables(), text, 0o600); err != nil {
		return fmt.Errorf("write Terraform's variables: %w", err)
	}
	if s.DomainType == "qemu" {
		return e.givePatience()
	}
	return nil
}

// patience are values for the job files on emulated machines, where a program
// takes ten times as long to start.
const patience = `# Made for emulated machines, and left alone from then on.
healthy_deadline  = "8m"
progress_deadline = "15m"
start_grace       = "4m"
`

// givePatience writes the environment's own values for the job files, where
// there are none.
func (e *Environment) givePatience() error {
	f, err := os.OpenFile(filepath.Join(e.dir, "jobs.hcl"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write values for the job files: %w", err)
	}
	if _, err := f.WriteString(patience); err != nil {
		return errors.Join(fmt.Errorf("write values for the job files: %w", err), f.Close())
	}
	return f.Close()
}

// Changes is Terraform's plan when an apply would change something, and empty
// when everything is as it should be.
func (e *Environment) Changes(ctx context.Context) (string, error) {
	unlock, err := e.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	t, err := e.terraform(ctx)
	if err != nil {
		return "", err
	}
	text, err := t.changes(ctx)
	if errors.Is(err, errTook) {
		return t.changes(ctx)
	}
	return text, err
}

func (e *Environment) terraform(ctx context.Context) (*terraform, error) {
	program, err := tools.EnsureTerraform(ctx, "", e.config.Say)
	if err != nil {
		return nil, err
	}
	return e.terraformOf(program), nil
}

func (e *Environment) terraformOf(program tools.Terraform) *terraform {
	return &terraform{
		program: program, chdir: filepath.Join(e.config.Root, "terraform", "environments", "local"), dir: e.dir,
		held: e.held, say: e.config.Say,
	}
}

// Exists says whether there is anything that Destroy would remove.
func (e *Environment) Exists() bool {
	if e.made || e.box.Running() {
		return true
	}
	_, err := os.Stat(e.box.Dir())
	return err == nil
}

// Destroy removes machines, box and folder, whatever state they are in; keepKeys
// leaves the keys for a next environment of this name. The image stays, for it
// belongs to the checkout.
func (e *Environment) Destroy(ctx context.Context, keepKeys bool) error {
	unlock, err := e.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if !e.Exists() {
		if _, err := os.Stat(filepath.Join(e.dir, "environment.json")); err == nil {
			return fmt.Errorf("%s is an environment of other machines: Terraform made them, and destroys them", e.config.Name)
		}
		return e.removeLock()
	}
	if err := e.destroyMachines(ctx); err != nil {
		return err
	}
	if err := e.box.Remove(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(e.disks()); err != nil {
		return fmt.Errorf("remove the machines' disks: %w", err)
	}
	entries, err := os.ReadDir(e.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the environment: %w", err)
	}
	// In the order of their names, with the settings last: while they are there,
	// a second Destroy goes on where this one was interrupted.
	for _, entry := range entries {
		if entry.Name() == "keys" && keepKeys {
			continue
		}
		if err := os.RemoveAll(filepath.Join(e.dir, entry.Name())); err != nil {
			return fmt.Errorf("remove the environment: %w", err)
		}
	}
	e.made = false
	if keepKeys {
		return nil
	}
	if err := os.RemoveAll(e.dir); err != nil {
		return fmt.Errorf("remove the environment: %w", err)
	}
	return e.removeLock()
}

// destroyMachines lets Terraform destroy what it made. In a box that may fail:
// the machines end with it.
func (e *Environment) destroyMachines(ctx context.Context) error {
	if e.settings.LibvirtURI == "" {
		if !e.box.Running() {
			return nil
		}
		if err := e.terraformDestroy(ctx); err != nil {
			e.config.Say(fmt.Sprintf("the machines end with their box, because: %v", err))
		}
		return ctx.Err()
	}
	err := e.terraformDestroy(ctx)
	if err != nil && ctx.Err() == nil {
		e.config.Say(fmt.Sprintf("trying once more: %v", err))
		err = e.terraformDestroy(ctx)
	}
	if err != nil {
		return err
	}
	return e.tidy(ctx)
}

func (e *Environment) stateFile() string { return filepath.Join(e.dir, "terraform.tfstate") }

// terraformDestroy does nothing where Terraform made nothing.
func (e *Environment) terraformDestroy(ctx context.Context) error {
	if _, err := os.Stat(e.stateFile()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	t, err := e.terraform(ctx)
	if err != nil {
		return err
	}
	e.config.Say(t.program.Name + " destroy")
	return t.destroy(ctx)
}
