package database

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/marquee-ads/marquee/platform/service"
)

// throughMesh as the host means an instance of the database's Consul service.
const throughMesh = "mesh"

// Flags are a service's settings for its database, as a field of its
// configuration that is tagged `embed:"" prefix:"database-"`.
type Flags struct {
	Host         string `default:"mesh" help:"Where Postgres is: mesh (an instance of --database-service), a host, or the folder of its Unix socket."`
	Port         uint16 `default:"5432" help:"Postgres's port, and the number in its socket's name. Not used through the mesh."`
	Service      string `default:"${name}-db" help:"Consul service name of the database, with --database-host=mesh."`
	Name         string `default:"${name}" help:"Database."`
	User         string `default:"${name}" help:"Role that owns the database."`
	PasswordFile string `type:"path" placeholder:"FILE" help:"File with the role's password. Needed unless Postgres trusts its socket."`
	MaxConns     int    `default:"10" help:"Most connections of this instance. Postgres allows 100 in all by default, which the instances share."`
}

// Check reports what is wrong, each with the flag and the fix: the service's
// Validate calls it.
func (f *Flags) Check(common *service.Config) error {
	var problems []error
	wrong := func(flag, format string, args ...any) {
		problems = append(problems, fmt.Errorf("--database-%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	if f.Host == "" {
		wrong("host", "is empty; use mesh, a host, or the folder of Postgres's Unix socket")
	}
	if f.Host == throughMesh && f.PasswordFile == "" {
		wrong("password-file", "is needed; name the file that holds the password of role %s", f.User)
	}
	if common.Mode == service.Production && !secured(f.Host) {
		wrong("host", "%s would be spoken to without encryption; use mesh, the folder of Postgres's Unix socket, or a loopback address", f.Host)
	}
	if f.MaxConns < 2 || f.MaxConns > 1000 {
		wrong("max-conns", "%d is out of range; use 2 to 1000", f.MaxConns)
	}
	return errors.Join(problems...)
}

// secured says whether nobody on the network can listen in on the connection to
// Postgres. Like pgx it takes several hosts with commas.
func secured(hosts string) bool {
	if hosts == throughMesh {
		return true
	}
	for host := range strings.SplitSeq(hosts, ",") {
		ip := net.ParseIP(host)
		if !strings.HasPrefix(host, "/") && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}

// Open makes the database of a service; its readiness follows it. The caller
// closes it.
func (f *Flags) Open(ctx context.Context, common *service.Config, svc *service.Service) (*Database, error) {
	cfg := Config{
		Application: common.Name,
		Host:        f.Host, Port: f.Port, Name: f.Name, User: f.User, MaxConns: f.MaxConns,
	}
	if f.PasswordFile != "" {
		var err error
		if cfg.Password, err = common.Secret("database-password-file", f.PasswordFile); err != nil {
			return nil, err
		}
	}
	if f.Host == throughMesh {
		cfg.Dial = func(ctx context.Context) (net.Conn, error) { return svc.Mesh().DialContext(ctx, f.Service) }
	}
	db, err := Open(ctx, cfg, svc.Log().Named("database"))
	if err != nil {
		return nil, err
	}
	svc.Require("database", db.Answers)
	return db, nil
}
