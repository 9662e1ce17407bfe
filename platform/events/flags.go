package events

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/marquee-ads/marquee/platform/service"
)

// throughMesh as the address means an instance of NATS's Consul service.
const throughMesh = "mesh"

// Flags are a service's settings for NATS, as a field of its configuration that
// is tagged `embed:"" prefix:"nats-"`.
type Flags struct {
	Address      string `default:"mesh" help:"Where NATS is: mesh (an instance of --nats-service), or host:port."`
	Service      string `default:"nats" help:"Consul service name of NATS, with --nats-address=mesh."`
	User         string `default:"${name}" help:"Whom NATS knows this service as."`
	PasswordFile string `type:"path" placeholder:"FILE" help:"File with the user's password. Needed through the mesh."`
	Replicas     int    `default:"1" help:"On how many servers of NATS this service's events are stored: 1, or 3 where there are three."`
}

// Check reports what is wrong, each with the flag and the fix: the service's
// Validate calls it.
func (f *Flags) Check(common *service.Config) error {
	var problems []error
	wrong := func(flag, format string, args ...any) {
		problems = append(problems, fmt.Errorf("--nats-%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	if f.Address == throughMesh {
		if f.PasswordFile == "" {
			wrong("password-file", "is needed; name the file that holds the password of user %s", f.User)
		}
	} else if host, _, err := net.SplitHostPort(f.Address); err != nil {
		wrong("address", "%q is no address; use mesh or host:port", f.Address)
	} else if ip := net.ParseIP(host); common.Mode == service.Production && (ip == nil || !ip.IsLoopback()) {
		wrong("address", "%s would be spoken to without encryption; use mesh, or a loopback address", f.Address)
	}
	if f.Replicas != 1 && f.Replicas != 3 {
		wrong("replicas", "%d is not offered; use 1, or 3", f.Replicas)
	}
	return errors.Join(problems...)
}

// Open makes the bus of a service. The service is ready without NATS: what it
// publishes waits in the outbox. The caller closes it.
func (f *Flags) Open(common *service.Config, svc *service.Service) (*Bus, error) {
	cfg := Config{Name: svc.InstanceID(), Address: f.Address, Log: svc.Log().Named("events"), Metrics: svc.Metrics()}
	if f.PasswordFile != "" {
		var err error
		if cfg.Password, err = common.Secret("nats-password-file", f.PasswordFile); err != nil {
			return nil, err
		}
		cfg.User = f.User
	}
	if f.Address == throughMesh {
		cfg.Dial = func(ctx context.Context) (net.Conn, error) { return svc.Mesh().DialContext(ctx, f.Service) }
	}
	return Connect(cfg)
}
