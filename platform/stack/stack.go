// Package stack is the whole platform on one machine: a cluster, the services'
// newest binaries, the edges, the secrets and the jobs. `marquee up` and the
// end-to-end tests bring it up through this package, so that what users run is
// what the tests run.
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
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/edges"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/tools"
)

// Service is a job of the platform.
type Service struct {
	// Name is the job's id and the Consul service's name.
	Name string
	// File is the job file, below the checkout.
	File string
	// Binaries are the programs it runs by the variable of the job file that
	// takes their path.
	Binaries map[string]string
	// Variables are fixed values for the job file's variables.
	Variables map[string]string
	// Secrets are made once and handed to the job as a Nomad variable.
	Secrets []Secret
}

// Services are the platform's jobs, those that others need first.
func Services() []Service {
	return []Service{
		{
			Name: "account-db", File: "nomad-jobs/postgres.nomad.hcl",
			Binaries:  map[string]string{"postgres_binary": "postgresd", "proxy_binary": "meshproxyd"},
			Variables: map[string]string{"name": "account-db"},
			Secrets:   []Secret{{Field: "password", Generate: randomPassword}},
		},
		{
			Name: "account", File: "nomad-jobs/account.nomad.hcl",
			Binaries: map[string]string{"account_binary": "accountd"},
			Secrets: []Secret{
				{Field: "database_password", CopyOf: "account-db", CopyField: "password"},
				{Field: "key_encryption_key", Generate: randomKey},
			},
		},
		{
			Name: "gateway", File: "nomad-jobs/gateway.nomad.hcl",
			Binaries: map[string]string{"gateway_binary": "gatewayd"},
		},
	}
}

// Config says which platform is meant.
type Config struct {
	// Root is the checkout.
	Root string
	// Cluster is the cluster it runs on. Its Progress is set by Open.
	Cluster cluster.Config
	// Services are the jobs; Services() when nil.
	Services []Service
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
	cluster *cluster.Cluster

	reporting sync.Mutex
}

// Open reads what is there and starts nothing.
func Open(cfg Config) (*Stack, error) {
	if cfg.Services == nil {
		cfg.Services = Services()
	}
	if cfg.EdgesFiles == nil {
		cfg.EdgesFiles = []string{filepath.Join(cfg.Root, "nomad-jobs", "edges.hcl")}
	}
	s := &Stack{cfg: cfg}
	s.cfg.Cluster.Progress = func(step cluster.Step) { s.say("%s", step.Text) }
	var err error
	s.cluster, err = cluster.Open(s.cfg.Cluster)
	return s, err
}

// Cluster is the cluster the platform runs on.
func (s *Stack) Cluster() *cluster.Cluster { return s.cluster }

// Jobs works on the platform's jobs. The cluster must have been up once.
func (s *Stack) Jobs() *jobs.Client { return jobs.New(s.cluster.Nomad(), s.cluster.Consul()) }

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

// Prepare does all of Up but the jobs: tools, binaries, cluster, edges, secrets.
// It changes nothing that is there already.
func (s *Stack) Prepare(ctx context.Context) error {
	var binaries map[string]string
	var postgres string
	group, building := errgroup.WithContext(ctx)
	group.Go(func() error {
		var err error
		binaries, err = s.build(building, s.cfg.Services)
		return err
	})
	group.Go(func() error {
		var err error
		postgres, err = tools.Ensure(building, tools.Postgres, func(line string) { s.say("%s", line) })
		return err
	})
	group.Go(func() error {
		if err := s.cluster.Up(building); err != nil {
			return err
		}
		return s.prepareCluster(building)
	})
	if err := group.Wait(); err != nil {
		return err
	}
	binaries["postgres_bin_dir"] = postgres
	binaries["postgres_data_folder"] = s.cluster.Volumes()
	for _, v := range s.cluster.Env() {
		if v.Name == "CONSUL_HTTP_ADDR" {
			binaries["consul_address"] = v.Value
		}
	}
	return s.remember(binaries)
}

// prepareCluster draws the edges and makes the secrets.
func (s *Stack) prepareCluster(ctx context.Context) error {
	// One text: what a file draws may be what another declares.
	var text []byte
	for _, file := range s.cfg.EdgesFiles {
		more, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading the edges: %w", err)
		}
		text = append(append(text, more...), '\n')
	}
	drawn, err := edges.Parse(text, strings.Join(s.cfg.EdgesFiles, "+"))
	if err != nil {
		return err
	}
	if err := s.cluster.Apply(ctx, drawn); err != nil {
		return err
	}
	return s.makeSecrets(ctx)
}

// build makes the binaries of some services: paths by job file variable.
func (s *Stack) build(ctx context.Context, services []Service) (map[string]string, error) {
	var names []string
	for _, service := range services {
		names = append(names, slices.Sorted(maps.Values(service.Binaries))...)
	}
	s.say("building %s", strings.Join(names, ", "))
	built, err := release.Build(ctx, names...)
	if err != nil {
		return nil, err
	}
	variables := make(map[string]string)
	for _, service := range services {
		for variable, binary := range service.Binaries {
			variables[variable] = built[binary].Path
		}
	}
	for _, name := range names {
		if built[name].New {
			s.say("built %s %s", name, built[name].Version)
		}
	}
	return variables, nil
}

// Deploy builds one service and rolls it out; it returns when all instances are
// healthy. variables win over all other values, for this deployment alone.
func (s *Stack) Deploy(ctx context.Context, name string, variables map[string]string) (jobs.Deployed, error) {
	service, err := s.service(name)
	if err != nil {
		return jobs.Deployed{}, err
	}
	binaries, err := s.build(ctx, []Service{service})
	if err != nil {
		return jobs.Deployed{}, err
	}
	if err := s.remember(binaries); err != nil {
		return jobs.Deployed{}, err
	}
	return s.deploy(ctx, service, variables)
}

// DeployAll deploys all services at once with the binaries that Prepare built;
// it returns when all instances are healthy, with what each deployment did.
func (s *Stack) DeployAll(ctx context.Context) ([]jobs.Deployed, error) {
	done := make([]jobs.Deployed, len(s.cfg.Services))
	group, ctx := errgroup.WithContext(ctx)
	for i, service := range s.cfg.Services {
		group.Go(func() error {
			var err error
			done[i], err = s.deploy(ctx, service, nil)
			return err
		})
	}
	return done, group.Wait()
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
	return client.Deploy(ctx, job, func(p jobs.Progress) {
		if p.Desired == 0 {
			s.say("%s: %s", p.Job, p.Message)
			return
		}
		s.say("%s: %d of %d healthy: %s", p.Job, p.Healthy, p.Desired, strings.ToLower(p.Message))
	})
}

// pruneAge is how old a release must be to be removed: other clusters of the
// checkout run releases too, and each build of theirs makes them young again.
const pruneAge = 7 * 24 * time.Hour

// Prune removes releases that are old and that no version of this cluster's
// jobs runs, so that Nomad can still revert.
func (s *Stack) Prune(ctx context.Context) error {
	used := make(map[string]bool)
	for _, service := range s.cfg.Services {
		paths, err := s.Jobs().Commands(ctx, service.Name)
		if err != nil {
			return err
		}
		for _, path := range paths {
			used[path] = true
		}
	}
	_, err := release.Prune(func(path string) bool {
		info, err := os.Stat(path)
		return used[path] || err != nil || time.Since(info.ModTime()) < pruneAge
	})
	return err
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

// Variables are the values that depend on the machine: the newest binaries'
// paths, Postgres's programs, the data folder. Empty before the first Prepare.
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

func (s *Stack) variablesPath() string { return filepath.Join(s.cluster.Dir(), "variables.json") }

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
	temp := s.variablesPath() + ".new"
	if err := os.WriteFile(temp, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("remembering the job variables: %w", err)
	}
	if err := os.Rename(temp, s.variablesPath()); err != nil {
		return fmt.Errorf("remembering the job variables: %w", err)
	}
	return nil
}
