package stack

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/environment"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/tools"
)

// Target is where the platform runs. There are two: the cluster on this machine,
// and a cluster of machines (OnMachines).
type Target interface {
	// Name is what people call it.
	Name() string
	// Dir is the folder on this machine for what is remembered of it.
	Dir() string
	// Nomad and Consul are clients with the operator's tokens.
	Nomad() *nomad.Client
	Consul() *consul.Client
	// Up brings it to where it takes jobs, or says why it does not.
	Up(ctx context.Context, say func(line string)) error
	// Place makes programs, by the job file's variable that ends in _binary,
	// available to the machines. It returns the values of the variables with
	// which job files find them.
	Place(ctx context.Context, programs map[string]release.Binary, say func(line string)) (map[string]string, error)
	// Prune removes what Place made available and none of these commands and URLs
	// names, if it is not new.
	Prune(ctx context.Context, used []string, say func(line string)) error
	// Facts are values of job files' variables that describe the machines. It
	// may be called while Up runs.
	Facts(ctx context.Context, say func(line string)) (map[string]string, error)
}

// laptop is the cluster on this machine: its jobs run the programs where they
// were built.
type laptop struct{ *cluster.Cluster }

func (l laptop) Up(ctx context.Context, _ func(string)) error { return l.Cluster.Up(ctx) }

func (l laptop) Place(_ context.Context, programs map[string]release.Binary, _ func(string)) (map[string]string, error) {
	variables := make(map[string]string, len(programs))
	for variable, program := range programs {
		variables[variable] = program.Path
	}
	// Addresses are known when the cluster was up.
	for _, v := range l.Env() {
		if v.Name == "CONSUL_HTTP_ADDR" {
			variables["consul_address"] = v.Value
		}
	}
	return variables, nil
}

// pruneAge is how old a release must be to be removed: other clusters of the
// checkout run releases too, and each build of theirs makes them young again.
const pruneAge = 7 * 24 * time.Hour

func (l laptop) Prune(_ context.Context, used []string, _ func(string)) error {
	_, err := release.Prune(func(path string) bool {
		info, err := os.Stat(path)
		return slices.Contains(used, path) || err != nil || time.Since(info.ModTime()) < pruneAge
	})
	return err
}

func (l laptop) Facts(ctx context.Context, say func(string)) (map[string]string, error) {
	postgres, err := tools.Ensure(ctx, tools.Postgres, say)
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"postgres_bin_dir": postgres, "postgres_data_folder": l.Volumes(),
		"media_url": "file://" + filepath.Join(l.Volumes(), "media"),
	}, nil
}

// ProductionVariables is the variables file for clusters of machines.
func ProductionVariables(root string) string {
	return filepath.Join(root, "nomad-jobs", "vars", "production.hcl")
}

// Machines is a cluster of machines: its jobs fetch the programs from the
// cluster itself.
type Machines struct {
	// Name is the environment's name; instances of different environments never
	// find each other.
	Name string
	// Dir is the environment's folder on this machine; it exists.
	Dir string
	// Nomad and Consul are clients with the operator's tokens.
	Nomad  *nomad.Client
	Consul *consul.Client
	// Upload puts a file, whose contents have this SHA-256 in hex, where every
	// machine finds it, and returns the URL for job files, which has the digest
	// as the part before its last. Uploading what is there already is cheap.
	Upload func(ctx context.Context, path, sha256 string) (url string, err error)
	// Prune removes what was uploaded and none of these URLs names. It may leave
	// what is new, and then does not fail.
	Prune func(ctx context.Context, needed []string) error
	// PostgresBinDir is the folder with Postgres's programs on the machines;
	// the variables file's when empty.
	PostgresBinDir string
}

// OnEnvironment makes a Target of an environment of this checkout.
func OnEnvironment(e *environment.Environment) (Target, error) {
	n, err := e.Nomad()
	if err != nil {
		return nil, err
	}
	c, err := e.Consul()
	if err != nil {
		return nil, err
	}
	artifacts, err := e.Artifacts()
	if err != nil {
		return nil, err
	}
	return OnMachines(Machines{Name: e.Name, Dir: e.Dir(), Nomad: n, Consul: c, Upload: artifacts.Upload, Prune: artifacts.Prune}), nil
}

// OnMachines makes a Target of a cluster of machines.
func OnMachines(m Machines) Target { return machines{m} }

type machines struct{ m Machines }

func (t machines) Name() string           { return t.m.Name }
func (t machines) Dir() string            { return t.m.Dir }
func (t machines) Nomad() *nomad.Client   { return t.m.Nomad }
func (t machines) Consul() *consul.Client { return t.m.Consul }

func (t machines) Up(ctx context.Context, say func(string)) error {
	say("looking for the cluster " + t.m.Name)
	return jobs.New(t.m.Nomad, t.m.Consul).Check(ctx)
}

// Prune fails for nobody: a server that is down is tidied up by the next one.
func (t machines) Prune(ctx context.Context, used []string, say func(string)) error {
	if err := t.m.Prune(ctx, used); err != nil {
		say(fmt.Sprintf("programs that no job needs any more are left: %v", err))
	}
	return nil
}

func (t machines) Place(ctx context.Context, programs map[string]release.Binary, say func(string)) (map[string]string, error) {
	variables := make(map[string]string, len(programs))
	for _, variable := range slices.Sorted(maps.Keys(programs)) {
		program := programs[variable]
		say(fmt.Sprintf("handing %s %s to the machines", program.Name, program.Version))
		url, err := t.m.Upload(ctx, program.Path, program.SHA256)
		if err != nil {
			return nil, fmt.Errorf("handing %s to the machines: %w", program.Name, err)
		}
		variables[strings.TrimSuffix(variable, "_binary")+"_artifact"] = url
	}
	return variables, nil
}

func (t machines) Facts(context.Context, func(string)) (map[string]string, error) {
	facts := map[string]string{"environment": t.m.Name}
	if t.m.PostgresBinDir != "" {
		facts["postgres_bin_dir"] = t.m.PostgresBinDir
	}
	return facts, nil
}
