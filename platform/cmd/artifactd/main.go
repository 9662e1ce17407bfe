// Command artifactd keeps the programs that a cluster runs: on servers it takes
// them from the operator and gives them to the machines, on clients it gives
// them to the tasks.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/marquee-ads/marquee/platform/artifacts"
	"github.com/marquee-ads/marquee/platform/keys"
	"github.com/marquee-ads/marquee/platform/machine"
)

// stopBound is how long transfers may go on after the signal to end.
const stopBound = 10 * time.Second

type cli struct {
	Config string `required:"" type:"path" help:"JSON file: role (server or client), servers (a client's, host:port), and where they are not the usual ones listen, folder, ca_file, cert_file, key_file, limit (bytes)." placeholder:"FILE"`
}

// settings are the file's. The certificate and its key are read again for each
// connection, so that renewed ones need no restart.
type settings struct {
	Role     keys.Role `json:"role"`
	Listen   string    `json:"listen"`
	Servers  []string  `json:"servers"`
	Folder   string    `json:"folder"`
	CAFile   string    `json:"ca_file"`
	CertFile string    `json:"cert_file"`
	KeyFile  string    `json:"key_file"`
	Limit    int64     `json:"limit"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	err := run(ctx, os.Args[1:], log, nil)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "artifactd:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends. listening is told the address, when it is not nil.
func run(ctx context.Context, args []string, log *slog.Logger, listening func(net.Addr)) error {
	c, err := load(args)
	if err != nil {
		return err
	}
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer l.Close()
	handler, wait, err := c.handler(&l, log)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	log.Info("listening", "role", c.Role, "address", l.Addr())
	if listening != nil {
		listening(l.Addr())
	}
	var serving sync.WaitGroup
	served := make(chan error, 1)
	serving.Go(func() { served <- server.Serve(l) })
	defer serving.Wait()
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopBound)
	defer cancel()
	if err := server.Shutdown(ending); err != nil {
		server.Close()
	}
	return wait(ending)
}

// load reads the flags and the file that they name.
func load(args []string) (*settings, error) {
	var c cli
	parser, err := kong.New(&c, kong.Name("artifactd"), kong.Description("Keeps the programs that a cluster runs."))
	if err != nil {
		return nil, err
	}
	if _, err := parser.Parse(args); err != nil {
		return nil, err
	}
	s := &settings{
		Folder: machine.Artifacts, CAFile: machine.CAFile, CertFile: machine.CertFile, KeyFile: machine.KeyFile,
		Limit: artifacts.DefaultLimit,
	}
	file, err := os.Open(c.Config)
	if err != nil {
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	defer file.Close()
	decoder := json.NewDecoder(file)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(s); err != nil {
		return nil, fmt.Errorf("read the settings from %s: %w", c.Config, err)
	}
	switch {
	case s.Role != keys.Server && s.Role != keys.Client:
		return nil, fmt.Errorf("%s: role is %q: want server or client", c.Config, s.Role)
	case s.Role == keys.Client && len(s.Servers) == 0:
		return nil, fmt.Errorf("%s: servers is missing: a client fetches from them", c.Config)
	case s.Limit <= 0:
		return nil, fmt.Errorf("%s: limit is %d: want a number of bytes", c.Config, s.Limit)
	case s.Listen == "" && s.Role == keys.Server:
		s.Listen = net.JoinHostPort("0.0.0.0", strconv.Itoa(artifacts.Port))
	case s.Listen == "":
		s.Listen = artifacts.MirrorAddress
	}
	return s, nil
}

// handler is the role's. wait returns when all that it started has ended.
func (c *settings) handler(l *net.Listener, log *slog.Logger) (handler http.Handler, wait func(context.Context) error, err error) {
	ca, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read the agents' CA: %w", err)
	}
	if _, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile); err != nil {
		return nil, nil, fmt.Errorf("read this machine's certificate: %w", err)
	}
	if c.Role == keys.Server {
		s, err := artifacts.NewServer(c.Folder, c.Limit, keys.OperatorName, log)
		if err != nil {
			return nil, nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(ca) {
			return nil, nil, fmt.Errorf("there is no certificate in %s", c.CAFile)
		}
		*l = tls.NewListener(*l, &tls.Config{
			MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.certificate() },
		})
		return s, func(context.Context) error { return nil }, nil
	}
	config, err := keys.TLS(ca, tls.Certificate{}, keys.ConsulServerName)
	if err != nil {
		return nil, nil, err
	}
	config.Certificates = nil
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.certificate() }
	m, err := artifacts.NewMirror(c.Folder, c.Limit, c.Servers, config, log)
	if err != nil {
		return nil, nil, err
	}
	return m, m.Wait, nil
}

// certificate reads it again, so that a renewed one needs no restart.
func (c *settings) certificate() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("read this machine's certificate: %w", err)
	}
	return &pair, nil
}
