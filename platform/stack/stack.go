// Package stack is the whole platform on a cluster, the one on this machine or
// one of machines: the services' newest binaries, the edges, the secrets and the
// jobs. `marquee` and the end-to-end tests bring it up through this package, so
// that what users run is what the tests run.
package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/edges"
	"github.com/marquee-ads/marquee/platform/files"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/meshconfig"
	"github.com/marquee-ads/marquee/platform/release"
)

// Service is a job of the platform.
type Service struct {
	// Name is the job's id and the Consul service's name.
	Name string
	// File is the job file, below the checkout.
	File string
	// Binaries are the programs it runs by the variable of the job file that
	// takes their path, whose name ends in _binary. Beside it the file declares
	// one that ends in _artifact, for the URL that machines fetch it from.
	Binaries map[string]string
	// Variables are fixed values for the job file's variables.
	Variables map[string]string
	// Secrets are made once and handed to the job as a Nomad variable.
	Secrets []Secret
	// KeepsData says that its data stays on one machine, which has a volume for it.
	// A database that ran once never again starts on an empty one.
	KeepsData bool
	// Local says that it runs on this machine's cluster alone.
	Local bool
}

// Config says which platform is meant.
type Config struct {
	// Root is the checkout.
	Root string
	// Target is where it runs; the cluster on this machine when nil.
	Target Target
	// Cluster is the cluster on this machine when Target is nil. Its Progress is
	// set by Open.
	Cluster cluster.Config
	// Services are the jobs; those of nomad-jobs/services.hcl when nil. Machines
	// run none that is Local.
	Services []Service
	// Demo adds the job that plays the demo's displays, which starts when MakeDemo
	// has made them.
	Demo bool
	// EdgesFiles are read together; nomad-jobs/edges.hcl when nil.
	EdgesFiles []string
	// Variables are values for the job files' variables, for example
	// account_count. They win over VariableFiles and Environ (NOMAD_VAR_*).
	Variables     map[string]string
	VariableFiles []string
	Environ       []string
	// Progress is told what is being done, a line at a time, never
	// concurrently. Nil is silent.
	Progress func(line string)
}

// Stack is the platform. Its methods may be called once it was up.
type Stack struct {
	cfg     Config
	target  Target
	cluster *cluster.Cluster

	reporting sync.Mutex
}

// Open reads what is there and starts nothing.
func Open(cfg Config) (*Stack, error) {
	if cfg.Services == nil {
		var err error
		if cfg.Services, err = ReadServices(cfg.Root); err != nil {
			return nil, err
		}
	}
	if cfg.Demo {
		cfg.Services = append(slices.Clone(cfg.Services), players())
	}
	if cfg.EdgesFiles == nil {
		cfg.EdgesFiles = []string{filepath.Join(cfg.Root, "nomad-jobs", "edges.hcl")}
	}
	s := &Stack{cfg: cfg, target: cfg.Target}
	if s.target != nil {
		s.cfg.Services = slices.DeleteFunc(slices.Clone(cfg.Services), func(service Service) bool { return service.Local })
		return s, nil
	}
	s.cfg.Cluster.Progress = func(line string) { s.say("%s", line) }
	var err error
	if s.cluster, err = cluster.Open(s.cfg.Cluster); err != nil {
		return nil, err
	}
	s.target = laptop{s.cluster}
	return s, nil
}

// Cluster is the cluster on this machine; nil when the target is another.
func (s *Stack) Cluster() *cluster.Cluster { return s.cluster }

// Target is where the platform runs.
func (s *Stack) Target() Target { return s.target }

// Jobs works on the platform's jobs. The cluster must have been up once.
func (s *Stack) Jobs() *jobs.Client { return jobs.New(s.target.Nomad(), s.target.Consul()) }

// Services are the platform's jobs.
func (s *Stack) Services() []Service { return s.cfg.Services }

func (s *Stack) say(format string, args ...any) {
	if s.cfg.Progress == nil {
		return
	}
	s.reporting.Lock()
	defer s.reporting.Unlock()
	s.cfg.Progress(fmt.Sprintf(format, args...))
}

// Prepare does all that the jobs need: tools, binaries, cluster, edges, secrets.
// It changes nothing that is there already.
func (s *Stack) Prepare(ctx context.Context) error {
	say := func(line string) { s.say("%s", line) }
	var built map[string]release.Binary
	var facts map[string]string
	group, preparing := errgroup.WithContext(ctx)
	group.Go(func() error {
		var err error
		built, err = s.build(preparing, s.cfg.Services)
		return err
	})
	group.Go(func() error {
		if err := s.target.Up(preparing, say); err != nil {
			return err
		}
		return s.prepareCluster(preparing)
	})
	group.Go(func() error {
		var err error
		facts, err = s.target.Facts(preparing, say)
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	return s.place(ctx, built, facts)
}

// place hands programs to the machines, and remembers where they find them
// beside what is known already.
func (s *Stack) place(ctx context.Context, built map[string]release.Binary, known map[string]string) error {
	variables, err := s.target.Place(ctx, built, func(line string) { s.say("%s", line) })
	if err != nil {
		return err
	}
	maps.Copy(variables, known)
	return s.remember(variables)
}

// prepareCluster draws the edges and makes the secrets.
func (s *Stack) prepareCluster(ctx context.Context) error {
	drawn, err := s.edges()
	if err != nil {
		return err
	}
	if err := meshconfig.Apply(ctx, s.target.Consul(), drawn); err != nil {
		return err
	}
	return s.makeSecrets(ctx)
}

// edges reads all edges files as one text: what a file draws may be what another
// declares.
func (s *Stack) edges() (edges.Edges, error) {
	var text []byte
	for _, file := range s.cfg.EdgesFiles {
		more, err := os.ReadFile(file)
		if err != nil {
			return edges.Edges{}, fmt.Errorf("reading the edges: %w", err)
		}
		text = append(append(text, more...), '\n')
	}
	return edges.Parse(text, strings.Join(s.cfg.EdgesFiles, "+"))
}

// build makes the binaries of some services: programs by job file variable.
func (s *Stack) build(ctx context.Context, services []Service) (map[string]release.Binary, error) {
	var names []string
	for _, service := range services {
		names = append(names, slices.Collect(maps.Values(service.Binaries))...)
	}
	slices.Sort(names)
	built := make(map[string]release.Binary)
	for _, name := range slices.Compact(names) {
		s.say("building %s", name)
		more, err := release.Build(ctx, name)
		if err != nil {
			return nil, err
		}
		if more[name].New {
			s.say("built %s %s", name, more[name].Version)
		}
		maps.Copy(built, more)
	}
	programs := make(map[string]release.Binary)
	for _, service := range services {
		for variable, binary := range service.Binaries {
			programs[variable] = built[binary]
		}
	}
	return programs, nil
}

// Deploy builds one service and rolls it out; it returns when all instances are
// healthy. variables win over all other values, for this deployment alone.
func (s *Stack) Deploy(ctx context.Context, name string, variables map[string]string) (jobs.Deployed, error) {
	service, err := s.service(name)
	if err != nil {
		return jobs.Deployed{}, err
	}
	if err := s.declared(slices.Sorted(maps.Keys(variables)), service); err != nil {
		return jobs.Deployed{}, err
	}
	built, err := s.build(ctx, []Service{service})
	if err != nil {
		return jobs.Deployed{}, err
	}
	if err := s.place(ctx, built, nil); err != nil {
		return jobs.Deployed{}, err
	}
	return s.deploy(ctx, service, variables)
}

// DeployAll deploys services, all when none is named, with the binaries that
// Prepare built; it returns when all instances are healthy, with what each
// deployment did. On this machine all are deployed at once. On machines it is one
// after the other, who is called before their callers: what does not become
// healthy stops the rest, and nobody waits for what is not there yet.
func (s *Stack) DeployAll(ctx context.Context, names ...string) ([]jobs.Deployed, error) {
	if err := s.Known(names...); err != nil {
		return nil, err
	}
	services := slices.Clone(s.cfg.Services)
	if len(names) > 0 {
		services = slices.DeleteFunc(services, func(service Service) bool { return !slices.Contains(names, service.Name) })
	}
	done := make([]jobs.Deployed, len(services))
	group, ctx := errgroup.WithContext(ctx)
	if s.cluster == nil {
		drawn, err := s.edges()
		if err != nil {
			return nil, err
		}
		services = calleesFirst(services, drawn)
		group.SetLimit(1) // which makes Go wait
	}
	for i, service := range services {
		group.Go(func() error {
			var err error
			done[i], err = s.deploy(ctx, service, nil)
			return err
		})
	}
	return done, group.Wait()
}

// calleesFirst sorts services so that each comes after those it calls, and
// otherwise leaves their order; of a circle one has to come too early.
func calleesFirst(services []Service, drawn edges.Edges) []Service {
	sorted := make([]Service, 0, len(services))
	seen := make(map[string]bool)
	var take func(Service)
	take = func(one Service) {
		if seen[one.Name] {
			return
		}
		seen[one.Name] = true
		for _, other := range services {
			if _, calls := drawn.Find(one.Name, other.Name); calls {
				take(other)
			}
		}
		sorted = append(sorted, one)
	}
	for _, one := range services {
		take(one)
	}
	return sorted
}

func (s *Stack) deploy(ctx context.Context, service Service, variables map[string]string) (jobs.Deployed, error) {
	client := s.Jobs()
	file, err := s.JobFile(service.Name)
	if err != nil {
		return jobs.Deployed{}, err
	}
	maps.Copy(file.Variables, variables)
	job, err := client.Load(ctx, file)
	if err != nil {
		return jobs.Deployed{}, err
	}
	done, err := client.Deploy(ctx, job, func(p jobs.Progress) {
		if p.Desired == 0 {
			s.say("%s: %s", p.Job, p.Message)
			return
		}
		s.say("%s: %d of %d healthy: %s", p.Job, p.Healthy, p.Desired, strings.ToLower(p.Message))
	})
	if err != nil || !service.KeepsData {
		return done, err
	}
	return done, s.markData(ctx, service.Name)
}

// Prune removes programs that are old and that no version of any of the
// cluster's jobs runs, so that Nomad can still revert.
func (s *Stack) Prune(ctx context.Context) error {
	used, err := s.Jobs().Programs(ctx)
	if err != nil {
		return err
	}
	return s.target.Prune(ctx, used, func(line string) { s.say("%s", line) })
}

// JobFile is a service's job file with all values for its variables, as Deploy
// uses it.
func (s *Stack) JobFile(name string) (jobs.File, error) {
	service, err := s.service(name)
	if err != nil {
		return jobs.File{}, err
	}
	variables, err := s.Variables()
	if err != nil {
		return jobs.File{}, err
	}
	maps.Copy(variables, s.cfg.Variables)
	maps.Copy(variables, service.Variables)
	return jobs.File{
		Path: filepath.Join(s.cfg.Root, service.File), Variables: variables,
		VariableFiles: s.cfg.VariableFiles, Environ: s.cfg.Environ,
	}, nil
}

// CheckVariables refuses values, of Variables and VariableFiles, for variables
// that no job file declares: nothing would come of them.
func (s *Stack) CheckVariables() error {
	names := slices.Sorted(maps.Keys(s.cfg.Variables))
	for _, file := range s.cfg.VariableFiles {
		more, err := jobs.VariablesIn(file)
		if err != nil {
			return err
		}
		names = append(names, more...)
	}
	return s.declared(names, s.cfg.Services...)
}

// declared is the error of a name that is no variable of the services' job
// files; it names those there are.
func (s *Stack) declared(names []string, services ...Service) error {
	var known, where []string
	for _, service := range services {
		more, err := jobs.File{Path: filepath.Join(s.cfg.Root, service.File)}.Declared()
		if err != nil {
			return err
		}
		known, where = append(known, more...), append(where, service.File)
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			slices.Sort(known)
			slices.Sort(where)
			return fmt.Errorf("there is no variable %q in %s: want one of %s",
				name, strings.Join(slices.Compact(where), ", "), strings.Join(slices.Compact(known), ", "))
		}
	}
	return nil
}

// Known says, as an error that names those there are, when a name is not that of
// a service.
func (s *Stack) Known(names ...string) error {
	for _, name := range names {
		if _, err := s.service(name); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stack) service(name string) (Service, error) {
	var names []string
	for _, service := range s.cfg.Services {
		if service.Name == name {
			return service, nil
		}
		names = append(names, service.Name)
	}
	return Service{}, fmt.Errorf("there is no service %q: want one of %s", name, strings.Join(names, ", "))
}

// Variables are the values that depend on the target: where the newest binaries
// are, Postgres's programs, the data folder. Empty before the first Prepare.
func (s *Stack) Variables() (map[string]string, error) {
	variables := make(map[string]string)
	text, err := os.ReadFile(s.variablesPath())
	if errors.Is(err, fs.ErrNotExist) {
		return variables, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the job variables: %w", err)
	}
	if err := json.Unmarshal(text, &variables); err != nil {
		return nil, fmt.Errorf("reading the job variables from %s: %w", s.variablesPath(), err)
	}
	return variables, nil
}

func (s *Stack) variablesPath() string { return filepath.Join(s.target.Dir(), "variables.json") }

// remember adds to what Variables returns.
func (s *Stack) remember(more map[string]string) error {
	variables, err := s.Variables()
	if err != nil {
		return err
	}
	maps.Copy(variables, more)
	text, err := json.MarshalIndent(variables, "", "  ")
	if err != nil {
		return err
	}
	if err := files.Replace(s.variablesPath(), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("remembering the job variables: %w", err)
	}
	return nil
}
