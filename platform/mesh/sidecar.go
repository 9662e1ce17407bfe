package mesh

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc"
)

// SidecarConfig is what Sidecar needs.
type SidecarConfig struct {
	// LookupEnv finds NOMAD_UPSTREAM_ADDR_*; os.LookupEnv by default.
	LookupEnv func(string) (string, bool)
}

// Sidecar is the mesh of a process with an Envoy beside it: Envoy holds the
// certificate, enforces the intentions and balances. The process speaks
// plaintext and refuses to do so anywhere but on loopback. A service is dialled
// at NOMAD_UPSTREAM_ADDR_<service>, dashes as underscores, which Nomad sets for
// every upstream of the job's connect block; another service is an error.
func Sidecar(cfg SidecarConfig) (Mesh, error) {
	if cfg.LookupEnv == nil {
		cfg.LookupEnv = os.LookupEnv
	}
	l := &local{close: func() {}}
	upstream := func(service string) (string, error) {
		name := UpstreamVariable(service)
		address, ok := cfg.LookupEnv(name)
		if !ok || address == "" {
			return "", fmt.Errorf("%s is not set: name %q among the upstreams of the job's connect block", name, service)
		}
		if err := checkLoopbackAddress(address); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		return address, nil
	}
	l.target = func(service string) (string, []grpc.DialOption, error) {
		address, err := upstream(service)
		return "passthrough:///" + address, nil, err
	}
	l.dial = func(ctx context.Context, service, port, name string) (net.Conn, error) {
		if port != "" || name != "" {
			return nil, unreachable(service, fmt.Errorf("its port %q, instance %q, is not one that a sidecar leads to", port, name))
		}
		address, err := upstream(service)
		if err != nil {
			return nil, unreachable(service, err)
		}
		conn, err := l.connect(ctx, address)
		if err != nil {
			return nil, unreachable(service, err)
		}
		return conn, nil
	}
	return l, nil
}

// UpstreamVariable is the environment variable in which Nomad gives a process
// the address of an upstream service.
func UpstreamVariable(service string) string {
	return "NOMAD_UPSTREAM_ADDR_" + strings.ReplaceAll(service, "-", "_")
}
