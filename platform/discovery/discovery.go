// Package discovery finds the healthy instances of a service in Consul, as a
// gRPC resolver (consul:///account) and as a plain watch, and registers
// processes that no Nomad job registers.
package discovery

import "context"

// Query says which instances are wanted.
type Query struct {
	// Service is the Consul service name.
	Service string
	// Tags must all be present; the environment's tag is always among them.
	Tags []string
	// Datacenter and Near are Consul's dc and near parameters; empty is the
	// agent's datacenter and no order.
	Datacenter string
	Near       string
	// Connect asks for instances that speak the mesh's TLS: Connect-native
	// ones, or the public listener of their sidecar.
	Connect bool
}

// Instance is one healthy instance.
type Instance struct {
	ID      string
	Address string // host:port to dial
	Node    string
	Tags    []string
	Meta    map[string]string
}

// EnvironmentTag is the tag that keeps environments apart: registration sets
// it and every Query demands it, so that production never dials a test instance.
func EnvironmentTag(environment string) string { return "env-" + environment }

// Watcher delivers the instances of a query, first at once and then on change.
type Watcher interface {
	Watch(ctx context.Context, q Query, update func([]Instance, error))
}
