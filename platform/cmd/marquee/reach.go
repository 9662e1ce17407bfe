package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/marquee-ads/marquee/platform/environment"
	"github.com/marquee-ads/marquee/platform/jobs"
)

// where says which cluster a command works on.
type where struct {
	Env string `placeholder:"NAME" help:"The environment to work on, a folder of .marquee/environments. Default: the cluster at NOMAD_ADDR (with NOMAD_TOKEN, NOMAD_CACERT and Consul's CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, CONSUL_CACERT) when that is set, else the one on this machine."`
}

// reach connects to the cluster and makes sure that it answers and knows the
// operator; an error names what to do about it. The second value is what people
// call the cluster.
func (w where) reach(e *env) (*jobs.Client, string, error) {
	switch {
	case w.Env != "":
		defer newSteps(e.stderr).slowly("waiting for an answer from the cluster of " + w.Env)()
		return reachEnvironment(e.ctx, e.root, w.Env)
	case os.Getenv("NOMAD_ADDR") != "":
		defer newSteps(e.stderr).slowly("waiting for an answer from " + os.Getenv("NOMAD_ADDR"))()
		return reachProcess(e.ctx)
	}
	s, err := e.running(nil)
	if err != nil {
		return nil, "", err
	}
	return s.Jobs(), e.name, nil
}

func reachEnvironment(ctx context.Context, root, name string) (*jobs.Client, string, error) {
	to, err := environment.Load(root, name)
	if err != nil {
		return nil, "", err
	}
	n, err := to.Nomad()
	if err != nil {
		return nil, "", err
	}
	c, err := to.Consul()
	if err != nil {
		return nil, "", err
	}
	client := jobs.New(n, c)
	return client, name, advise(client.Check(ctx), func(a *jobs.AccessError) string {
		switch a.Problem {
		case jobs.Refused:
			return fmt.Sprintf("the tokens in %s are not the cluster's: take the keys that its machines were made with", environment.KeysFolder(root, name))
		case jobs.Untrusted:
			return fmt.Sprintf("the cluster's certificates come from another authority than the one in %s: take the keys that its machines were made with", environment.KeysFolder(root, name))
		default:
			return fmt.Sprintf("do the machines of environment %s run, and may this machine reach them", name)
		}
	})
}

func reachProcess(ctx context.Context) (*jobs.Client, string, error) {
	n, err := nomad.NewClient(nomad.DefaultConfig())
	if err != nil {
		return nil, "", fmt.Errorf("NOMAD_ADDR, NOMAD_CACERT: %w", err)
	}
	c, err := consul.NewClient(consul.DefaultConfig())
	if err != nil {
		return nil, "", fmt.Errorf("CONSUL_HTTP_ADDR, CONSUL_CACERT: %w", err)
	}
	client := jobs.New(n, c)
	return client, n.Address(), advise(client.Check(ctx), func(a *jobs.AccessError) string {
		address, token, authority := "NOMAD_ADDR", "NOMAD_TOKEN", "NOMAD_CACERT"
		if a.System == "Consul" {
			address, token, authority = "CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "CONSUL_CACERT"
		}
		switch a.Problem {
		case jobs.Refused:
			return fmt.Sprintf("set %s to a token that the cluster knows, or name the environment with --env", token)
		case jobs.Untrusted:
			return fmt.Sprintf("set %s to the cluster's certificate authority, or name the environment with --env", authority)
		default:
			return fmt.Sprintf("set %s to where it is, unset NOMAD_ADDR for the cluster on this machine, or name the environment with --env", address)
		}
	})
}

// advise adds what to do about it to an *jobs.AccessError.
func advise(err error, fix func(*jobs.AccessError) string) error {
	var access *jobs.AccessError
	if errors.As(err, &access) {
		return fmt.Errorf("%w: %s", err, fix(access))
	}
	return err
}
