package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/marquee-ads/marquee/platform/environment"
	"github.com/marquee-ads/marquee/platform/vms"
	"github.com/marquee-ads/marquee/platform/vms/box"
	"github.com/marquee-ads/marquee/platform/vms/image"
)

type vmsCmd struct {
	Env string `default:"local" env:"MARQUEE_ENVIRONMENT" placeholder:"NAME" help:"The environment's name; its state is in .marquee/environments/<name>."`

	Up      vmsUpCmd      `cmd:"" help:"Make virtual machines and a cluster of them, or what is missing of it."`
	Destroy vmsDestroyCmd `cmd:"" help:"Remove the machines and everything that belongs to them, whatever state it is in."`
	Status  vmsStatusCmd  `cmd:"" help:"Show the machines and how the cluster is."`
	Plan    vmsPlanCmd    `cmd:"" help:"Say what Terraform would change; exit code 1 when there is something."`
	Replace vmsReplaceCmd `cmd:"" help:"Make one machine again, with today's keys and settings; its disk stays unless --disk."`
	Shell   vmsShellCmd   `cmd:"" help:"Open a shell that reaches the machines, with NOMAD_ADDR and its like set."`
	Exec    vmsExecCmd    `cmd:"" passthrough:"" help:"Run a command that reaches the machines, as in the shell."`
	SSH     vmsSSHCmd     `cmd:"" name:"ssh" passthrough:"" help:"Log in to a machine, or run a command on it: ssh NODE [COMMAND…]."`
	Image   vmsImageCmd   `cmd:"" help:"Build the machines' image, or find the one that is built."`
	Doctor  vmsDoctorCmd  `cmd:"" help:"Check whether this host can run virtual machines, and what would make it."`

	BoxInit vmsBoxInitCmd `cmd:"" hidden:"" help:"The first process of a box."`
	Wait    vmsWaitCmd    `cmd:"" hidden:"" help:"The part of up that reaches the machines."`
}

// open reads what there is of the environment.
func (c *vmsCmd) open(e *env, config vms.Config, say func(string)) (*vms.Environment, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	config.Root, config.Name, config.Say = e.root, c.Env, say
	config.Self = []string{self, "vms", "box-init"}
	return vms.Open(config)
}

// made is an environment whose machines were made.
func (c *vmsCmd) made(e *env) (*vms.Environment, *environment.Environment, error) {
	v, err := c.open(e, vms.Config{}, nil)
	if err != nil {
		return nil, nil, err
	}
	if !v.Exists() {
		return nil, nil, fmt.Errorf("%w: there are no machines called %s: marquee vms up makes them", errNotRunning, c.Env)
	}
	made, err := environment.Load(e.root, c.Env)
	if err != nil {
		return nil, nil, fmt.Errorf("%s is half made: marquee vms up finishes it, marquee vms destroy removes it: %w", c.Env, err)
	}
	if v.Box() != nil && !v.Box().Running() {
		return nil, nil, fmt.Errorf("%w: the machines of %s ended with their box: marquee vms up starts them again", errNotRunning, c.Env)
	}
	return v, made, nil
}

// enter makes this process run in the network of the machines: it becomes itself
// there. It returns where it is there already, or where nothing is to be entered.
func enter(b *box.Box) error {
	if b == nil || box.Inside(b.Dir()) {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	return become(b, append([]string{self}, os.Args[1:]...), nil)
}

// become turns this process into a program in the network of the machines, with
// further variables.
func become(b *box.Box, argv, environ []string) error {
	environ = append(os.Environ(), environ...)
	if b != nil && !box.Inside(b.Dir()) {
		line, err := b.Command(argv...)
		if err != nil {
			return err
		}
		argv, environ = line, append(environ, box.InsideVariable+"="+b.Dir())
	}
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	if err := syscall.Exec(program, argv, environ); err != nil {
		return fmt.Errorf("run %s: %w", program, err)
	}
	return nil
}

type vmsUpCmd struct {
	Servers      int           `placeholder:"N" help:"Machines that lead: 1, 3, 5 or 7 (3 at first, then as before)."`
	Clients      *int          `placeholder:"N" help:"Machines that run jobs (2 at first, then as before)."`
	Memory       int           `placeholder:"MIB" help:"Memory of every machine, instead of the two below."`
	ServerMemory int           `placeholder:"MIB" help:"Memory of a server (640 at first)."`
	ClientMemory int           `placeholder:"MIB" help:"Memory of a client (1536 at first)."`
	Network      string        `placeholder:"CIDR" help:"The machines' network (10.77.0.0/24 at first)."`
	LibvirtURI   string        `name:"libvirt-uri" placeholder:"URI" env:"MARQUEE_LIBVIRT_URI" help:"Use the host's own libvirt, for example qemu:///system, instead of one in a box of its own."`
	Install      bool          `help:"Install the packages that the host lacks (as root, with apt-get)."`
	AptSources   string        `placeholder:"FILE" help:"Where the image's packages come from, instead of this machine's own sources."`
	JSON         bool          `name:"json" help:"Print the result as JSON; progress goes to standard error."`
	Timeout      time.Duration `default:"20m" help:"Give up after this long. What is there then stays; a second call goes on."`
}

// vmsResult is what up and status print with --json.
type vmsResult struct {
	Environment string            `json:"environment"`
	Machines    []vms.Machine     `json:"machines"`
	Settings    vms.Settings      `json:"settings"`
	Healthy     bool              `json:"healthy"`
	Problem     string            `json:"problem,omitempty"`
	Seconds     float64           `json:"seconds,omitempty"`
	Variables   map[string]string `json:"variables"`
}

// Run makes the machines and waits until they are a cluster.
func (u *vmsUpCmd) Run(c *vmsCmd, e *env) error {
	ctx, cancel := e.within(u.Timeout)
	defer cancel()
	steps := newSteps(e.stderr)
	config := vms.Config{
		Want: vms.Settings{
			Servers: u.Servers, ServerMemory: first(u.ServerMemory, u.Memory), ClientMemory: first(u.ClientMemory, u.Memory),
			Network: u.Network, LibvirtURI: u.LibvirtURI,
		},
		Install: u.Install,
		Image:   image.Options{Sources: u.AptSources},
	}
	if u.Clients != nil {
		config.Want.Clients, config.NoClients = *u.Clients, *u.Clients == 0
	}
	v, err := c.open(e, config, func(line string) { steps.say("%s", line) })
	if err != nil {
		return err
	}
	made, err := v.Up(ctx)
	if err == nil {
		err = waitHealthy(ctx, c, v, made, e.stderr, steps)
	}
	if err != nil {
		if v.Exists() {
			fmt.Fprintln(e.stderr, "What was made so far stays: marquee vms up goes on with it, marquee vms destroy removes it.")
		}
		return because(ctx, err)
	}
	steps.say("the cluster is healthy")
	if u.JSON {
		return e.printJSON(result(c.Env, v, made, nil, steps.elapsed()))
	}
	_, err = io.WriteString(e.stdout, vmsWelcome(v, made, steps.elapsed(), commandName(os.Args[0])))
	return err
}

func first(values ...int) int {
	for _, v := range values {
		if v != 0 {
			return v
		}
	}
	return 0
}

// waitHealthy waits in the network of the machines: in a child there, where this
// process is outside.
func waitHealthy(ctx context.Context, c *vmsCmd, v *vms.Environment, made *environment.Environment, w io.Writer, steps *steps) error {
	if v.Box() == nil || box.Inside(v.Box().Dir()) {
		return v.Wait(ctx, made)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	cmd, err := v.Box().Enter(ctx, self, "vms", "--env", c.Env, "wait", "--since", strconv.FormatInt(steps.start.UnixMilli(), 10))
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = w, w
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return errors.New("the cluster is not healthy yet")
		}
		// It has said why.
		return fmt.Errorf("the cluster did not become healthy: %w", err)
	}
	return nil
}

type vmsWaitCmd struct {
	Since int64 `help:"When it began, in milliseconds of Unix time."`
}

// Run waits until the machines are a cluster.
func (w *vmsWaitCmd) Run(c *vmsCmd, e *env) error {
	steps := newSteps(e.stderr)
	if w.Since != 0 {
		steps.start = time.UnixMilli(w.Since)
	}
	v, err := c.open(e, vms.Config{}, func(line string) { steps.say("%s", line) })
	if err != nil {
		return err
	}
	made, err := environment.Load(e.root, c.Env)
	if err != nil {
		return err
	}
	return v.Wait(e.ctx, made)
}

// vmsWelcome is what a person reads when the machines are a cluster.
func vmsWelcome(v *vms.Environment, made *environment.Environment, took time.Duration, command string) string {
	var text strings.Builder
	s := v.Settings()
	fmt.Fprintf(&text, "\n%d servers and %d clients are a cluster after %.0f s (%s).\n\n", s.Servers, s.Clients, took.Seconds(),
		map[string]string{"kvm": "KVM", "qemu": "emulated"}[s.DomainType])
	for _, variable := range made.Env() {
		value := variable.Value
		if strings.HasSuffix(variable.Name, "_TOKEN") {
			// On a screen that others see, a token is no secret any more.
			value = "… (marquee vms shell has it)"
		}
		fmt.Fprintf(&text, "  %s=%s\n", variable.Name, value)
	}
	fmt.Fprintf(&text, `
Next:
  make deploy ENV=%[1]s                 run the jobs on it
  %[2]s vms --env %[1]s status    how it is
  %[2]s vms --env %[1]s shell     a shell that reaches the machines: nomad, consul, curl, virsh
  %[2]s vms --env %[1]s ssh client-1
  make vms-destroy ENV=%[1]s            remove it all
`, made.Name, command)
	return text.String()
}

func result(name string, v *vms.Environment, made *environment.Environment, problem error, took time.Duration) vmsResult {
	r := vmsResult{
		Environment: name, Machines: v.Machines(), Settings: v.Settings(), Healthy: problem == nil,
		Seconds: took.Seconds(), Variables: map[string]string{},
	}
	if problem != nil {
		r.Problem = problem.Error()
	}
	for _, variable := range made.Env() {
		r.Variables[variable.Name] = variable.Value
	}
	return r
}

type vmsDestroyCmd struct {
	KeepKeys bool          `help:"Keep certificates, keys and tokens for a next environment of this name."`
	Timeout  time.Duration `default:"5m" help:"Give up after this long; a second call goes on."`
}

// Run removes everything; nothing to remove is no error.
func (d *vmsDestroyCmd) Run(c *vmsCmd, e *env) error {
	ctx, cancel := e.within(d.Timeout)
	defer cancel()
	steps := newSteps(e.stderr)
	v, err := c.open(e, vms.Config{}, func(line string) { steps.say("%s", line) })
	if errors.Is(err, vms.ErrBroken) {
		err = nil
	}
	if err != nil {
		return err
	}
	if !v.Exists() {
		steps.say("there is nothing called %s", c.Env)
	}
	if err := v.Destroy(ctx, d.KeepKeys); err != nil {
		return because(ctx, err)
	}
	steps.say("nothing is left of %s", c.Env)
	return nil
}

type vmsStatusCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run shows the machines; the exit code is 1 when the cluster is not healthy.
func (s *vmsStatusCmd) Run(c *vmsCmd, e *env) error {
	v, made, err := c.made(e)
	if err != nil {
		return err
	}
	if err := enter(v.Box()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(e.ctx, 30*time.Second)
	defer cancel()
	problem := v.Healthy(ctx, made)
	if s.JSON {
		if err := e.printJSON(result(c.Env, v, made, problem, 0)); err != nil {
			return err
		}
		return problem
	}
	table := tabwriter.NewWriter(e.stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "MACHINE\tADDRESS\tMEMORY\tSTATE\tCONSOLE")
	for _, m := range v.Machines() {
		fmt.Fprintf(table, "%s\t%s\t%d MiB\t%s\t%s\n", m.Name, m.Address, m.Memory, m.State, m.Console)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if problem != nil {
		return fmt.Errorf("the cluster is not healthy: %w", problem)
	}
	_, err = fmt.Fprintln(e.stdout, "\nThe cluster is healthy.")
	return err
}

type vmsPlanCmd struct{}

// Run prints the plan.
func (p *vmsPlanCmd) Run(c *vmsCmd, e *env) error {
	v, _, err := c.made(e)
	if err != nil {
		return err
	}
	changes, err := v.Changes(e.ctx)
	if err != nil {
		return err
	}
	if changes == "" {
		_, err := fmt.Fprintln(e.stdout, "Nothing would be changed.")
		return err
	}
	if _, err := io.WriteString(e.stdout, changes); err != nil {
		return err
	}
	return errors.New("there are changes: marquee vms up makes them")
}

type vmsReplaceCmd struct {
	Node    string        `arg:"" help:"The machine, for example client-1."`
	Disk    bool          `help:"With an empty disk, too: what the machine had is gone."`
	Timeout time.Duration `default:"10m" help:"Give up after this long; marquee vms up goes on."`
}

// Run replaces one machine and waits until the cluster is healthy.
func (r *vmsReplaceCmd) Run(c *vmsCmd, e *env) error {
	ctx, cancel := e.within(r.Timeout)
	defer cancel()
	_, made, err := c.made(e)
	if err != nil {
		return err
	}
	steps := newSteps(e.stderr)
	v, err := c.open(e, vms.Config{}, func(line string) { steps.say("%s", line) })
	if err != nil {
		return err
	}
	if err := v.Replace(ctx, r.Node, r.Disk); err != nil {
		return because(ctx, err)
	}
	if err := waitHealthy(ctx, c, v, made, e.stderr, steps); err != nil {
		return because(ctx, err)
	}
	steps.say("the cluster is healthy")
	return nil
}

// environ is the environment of programs that reach the machines.
func environ(made *environment.Environment) []string {
	var list []string
	for _, variable := range made.Env() {
		list = append(list, variable.Name+"="+variable.Value)
	}
	return list
}

type vmsShellCmd struct{}

// Run becomes a shell.
func (s *vmsShellCmd) Run(c *vmsCmd, e *env) error {
	v, made, err := c.made(e)
	if err != nil {
		return err
	}
	shell := os.Getenv("SHELL")
	if shell == "" {
		shell = "/bin/sh"
	}
	fmt.Fprintf(e.stderr, "In the network of %s; exit leaves it.\n", c.Env)
	return become(v.Box(), []string{shell}, append(environ(made), v.Environ()...))
}

type vmsExecCmd struct {
	Command []string `arg:"" help:"The command and its arguments."`
}

// Run becomes the command.
func (x *vmsExecCmd) Run(c *vmsCmd, e *env) error {
	v, made, err := c.made(e)
	if err != nil {
		return err
	}
	return become(v.Box(), afterDashes(x.Command), append(environ(made), v.Environ()...))
}

// afterDashes drops the -- that separates a command from options.
func afterDashes(command []string) []string {
	if len(command) > 1 && command[0] == "--" {
		return command[1:]
	}
	return command
}

type vmsSSHCmd struct {
	Command []string `arg:"" help:"The machine, then what to run there."`
}

// Run becomes ssh.
func (s *vmsSSHCmd) Run(c *vmsCmd, e *env) error {
	v, made, err := c.made(e)
	if err != nil {
		return err
	}
	command := afterDashes(s.Command)
	line, err := v.SSH(made, command[0], command[1:]...)
	if err != nil {
		return err
	}
	return become(v.Box(), line, nil)
}

type vmsImageCmd struct {
	Fresh      bool   `help:"Build it even where it is built already, for newer packages."`
	AptSources string `placeholder:"FILE" help:"Where packages come from, instead of this machine's own sources."`
	Install    bool   `help:"Install the packages that the host lacks (as root, with apt-get)."`
	JSON       bool   `name:"json" help:"Print JSON."`
}

// Run builds the image.
func (i *vmsImageCmd) Run(e *env) error {
	steps := newSteps(e.stderr)
	say := func(line string) { steps.say("%s", line) }
	if err := vms.EnsurePackages(e.ctx, false, i.Install, say); err != nil {
		return err
	}
	made, err := image.Ensure(e.ctx, image.Options{Root: e.root, Sources: i.AptSources, Fresh: i.Fresh, Progress: say})
	if err != nil {
		return err
	}
	if i.JSON {
		return e.printJSON(made)
	}
	_, err = fmt.Fprintf(e.stdout, "disk    %s\nkernel  %s\ninitrd  %s\nbuilt   %s\n", made.Disk, made.Kernel, made.Initrd, made.Built.Local().Format(time.DateTime))
	return err
}

type vmsDoctorCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run checks the host; the exit code is 1 when something must be done.
func (d *vmsDoctorCmd) Run(c *vmsCmd, e *env) error {
	v, err := c.open(e, vms.Config{}, nil)
	if err != nil {
		return err
	}
	checks := v.Doctor(e.ctx)
	bad := 0
	for _, check := range checks {
		if !check.OK && !check.Optional {
			bad++
		}
	}
	if d.JSON {
		if err := e.printJSON(checks); err != nil {
			return err
		}
	} else {
		table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
		for _, check := range checks {
			fmt.Fprintf(table, "%s\t%s\t%s\n", map[bool]string{true: "ok", false: "--"}[check.OK], check.Name, check.Found)
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d things to do before marquee vms up", bad)
	}
	return nil
}

type vmsBoxInitCmd struct {
	Dir string `arg:""`
}

// Run is the first process of a box.
func (b *vmsBoxInitCmd) Run(*env) error { return box.Init(b.Dir) }
