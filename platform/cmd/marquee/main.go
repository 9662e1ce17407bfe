// Command marquee runs the platform: it brings it up and down, deploys, shows
// what runs, and calls it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/demo"
	"github.com/marquee-ads/marquee/platform/stack"
	"github.com/marquee-ads/marquee/platform/tools"
)

// Exit codes, as --help has them.
const (
	exitFailed     = 1
	exitUsage      = 2
	exitNotRunning = 3
)

// errNotRunning says that the command needs a running cluster; who returns it
// adds what starts it.
var errNotRunning = errors.New("the cluster is not running")

// localCluster is the cluster that is meant when none is named.
const localCluster = "local"

// cli is the command line.
type cli struct {
	Cluster string `default:"${local}" env:"MARQUEE_CLUSTER" help:"The cluster's name; its state is in .marquee/clusters/<name>."`

	Up        upCmd        `cmd:"" help:"Bring the platform up: tools, services, cluster, jobs, displays to look at."`
	Down      downCmd      `cmd:"" help:"Stop everything the cluster runs; data stays unless --wipe."`
	Status    statusCmd    `cmd:"" help:"Show services, instances, health and versions."`
	Logs      logsCmd      `cmd:"" help:"Show a service's logs, all instances together."`
	Deploy    deployCmd    `cmd:"" help:"Build one service and roll it out without a failed call."`
	Restart   restartCmd   `cmd:"" help:"Replace a service's instances one at a time."`
	Jobs      jobsCmd      `cmd:"" help:"Work on the jobs of any cluster: list, deploy, scale, config, exec, logs, stop."`
	Nodes     nodesCmd     `cmd:"" help:"Work on the machines of any cluster: list, meta, drain, eligibility."`
	Images    imagesCmd    `cmd:"" help:"Make container images of the services, for clusters whose machines run Docker."`
	Watch     watchCmd     `cmd:"" help:"Watch who answers for a service, or displays: marquee watch devices."`
	Invoke    invokeCmd    `cmd:"" help:"Call a method through the gateway with JSON."`
	List      listCmd      `cmd:"" help:"List the services and methods that the gateway serves."`
	Describe  describeCmd  `cmd:"" help:"Describe a service, a method or a message."`
	New       newCmd       `cmd:"" help:"Make a new service in this checkout, ready to run; or take it out again."`
	Env       envCmd       `cmd:"" help:"Print export lines for nomad, consul and the job files' variables."`
	Tools     toolsCmd     `cmd:"" help:"Find or build the programs that the platform and its tests run, and print where they are."`
	Terraform terraformCmd `cmd:"" passthrough:"" help:"Run terraform, or OpenTofu, with the providers that this checkout pins."`
	Keys      keysCmd      `cmd:"" help:"Make, show and rotate the certificates, gossip keys and tokens of an environment."`
	Vms       vmsCmd       `cmd:"" help:"Make virtual machines on this host and a cluster of them; enter it; take it away."`
	Version   versionCmd   `cmd:"" help:"Print the version."`
}

// vars are the words in the help texts that come from elsewhere.
func vars() kong.Vars {
	return kong.Vars{"local": localCluster, "tools": strings.Join(tools.Names(), ", "), "owners": strings.Join(demo.OwnerKeys(), ","), "accounts": strings.Join(demo.Keys(), ",")}
}

// Validate refuses names that are no folder's.
func (c *cli) Validate() error { return cluster.CheckName(c.Cluster) }

// env is what every command gets.
type env struct {
	ctx    context.Context
	root   string
	name   string // of the cluster
	stdout io.Writer
	stderr io.Writer
	stdin  io.Reader
}

const description = `Runs the Marquee platform on this machine.

Examples:
  marquee up                                   bring everything up, change nothing that runs
  marquee status                               what runs, and how it is
  marquee watch account                        who answers, a line a second
  marquee watch devices                        which displays are connected, and what they play
  marquee deploy account                       build and roll out that one
  marquee logs account -f                      follow its logs
  marquee invoke marquee.account.v1.AccountService/GetAccount '{"account_id":"me"}' --as demo
  marquee jobs deploy --env local              make the cluster of machines run what nomad-jobs/ says
  marquee jobs exec account -- /bin/sh         a command beside a task
  eval "$(marquee env)" && nomad job run nomad-jobs/account.nomad.hcl
  marquee down --wipe                          stop it and forget its data

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 the cluster is not running; of
jobs exec, the command's own.`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends what is being done in order, a second one at once.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run parses and runs one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var c cli
	answered := false
	parser, err := kong.New(&c,
		kong.Name("marquee"), kong.Description(description), kong.UsageOnError(),
		vars(),
		kong.Writers(stdout, stderr), kong.Exit(func(int) { answered = true }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 110}))
	if err != nil {
		fmt.Fprintln(stderr, "marquee:", err)
		return exitFailed
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if answered {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "marquee: %v\nSee marquee --help.\n", err)
		return exitUsage
	}
	root, err := tools.Root()
	if err != nil {
		fmt.Fprintln(stderr, "marquee:", err)
		return exitFailed
	}
	var ended *exitError
	err = command.Run(&env{ctx: ctx, root: root, name: c.Cluster, stdin: stdin, stdout: stdout, stderr: stderr})
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ended):
		return ended.code
	case errors.Is(err, errNotRunning):
		fmt.Fprintln(stderr, "marquee:", err)
		return exitNotRunning
	default:
		fmt.Fprintln(stderr, "marquee:", err)
		return exitFailed
	}
}

// open returns the platform without looking whether it runs.
func (e *env) open(progress func(string)) (*stack.Stack, error) {
	return e.openWith(stack.Config{Progress: progress, Demo: true})
}

// openWith is open with values of the caller's own for the job files.
func (e *env) openWith(cfg stack.Config) (*stack.Stack, error) {
	cfg.Root = e.root
	cfg.Cluster = cluster.Config{Dir: cluster.Folder(e.root, e.name), Name: e.name}
	cfg.VariableFiles = append([]string{filepath.Join(e.root, "nomad-jobs", "vars", "local.hcl")}, cfg.VariableFiles...)
	cfg.Environ = os.Environ()
	return stack.Open(cfg)
}

// running returns the platform of a cluster that runs.
func (e *env) running(progress func(string)) (*stack.Stack, error) {
	s, status, err := e.look(progress)
	if err != nil {
		return nil, err
	}
	return s, e.mustRun(status)
}

// look returns the platform and what runs of its cluster.
func (e *env) look(progress func(string)) (*stack.Stack, cluster.Status, error) {
	s, err := e.open(progress)
	if err != nil {
		return nil, cluster.Status{}, err
	}
	status, err := s.Cluster().Status(e.ctx)
	return s, status, err
}

// mustRun is the error of a command that needs a running cluster.
func (e *env) mustRun(status cluster.Status) error {
	if status.Ready {
		return nil
	}
	return fmt.Errorf("%w (%s: %s): %s starts it", errNotRunning, e.name, status.Problem, e.command("up"))
}

// command is what a person types for a command on this cluster.
func (e *env) command(name string) string {
	if e.name == localCluster {
		return "marquee " + name
	}
	return "marquee --cluster " + e.name + " " + name
}

// within bounds a command by its --timeout. What ctx ends with says which of the
// two it was, see because.
func (e *env) within(timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(e.ctx, timeout, fmt.Errorf("it took longer than --timeout=%s", timeout))
}

// because prefers why a context ended to that it ended.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// printJSON writes a value for programs.
func (e *env) printJSON(value any) error {
	encoder := json.NewEncoder(e.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

type versionCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// revision is the commit this was built from, as git describes it; the Makefile
// sets it.
var revision = "of an unknown revision"

// Run prints what this binary was built from.
func (v *versionCmd) Run(e *env) error {
	if v.JSON {
		return e.printJSON(map[string]any{"revision": revision, "go": runtime.Version()})
	}
	_, err := fmt.Fprintf(e.stdout, "marquee %s, %s\n", revision, runtime.Version())
	return err
}
