package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// admin is the plaintext port for whoever runs the service: Nomad's and
// Consul's checks, Prometheus, a person with curl.
type admin struct {
	listener net.Listener
	server   *http.Server
	health   *grpc.Server
	running  sync.WaitGroup
}

func newAdmin(ctx context.Context, s *Service) (*admin, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.AdminListen)
	if err != nil {
		return nil, fmt.Errorf("--admin-listen: %w", err)
	}
	a := &admin{listener: listener, health: grpc.NewServer()}
	healthpb.RegisterHealthServer(a.health, s.health)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", s.serveReadiness)
	mux.HandleFunc("GET /version", s.serveVersion)
	mux.HandleFunc("GET /log-level", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, s.log.GetLevel()) })
	mux.HandleFunc("PUT /log-level", s.setLogLevel)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	if s.cfg.Mode != Production || s.cfg.AdminPprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}

	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	// gRPC health checks come as HTTP/2 without TLS.
	protocols.SetUnencryptedHTTP2(true)
	a.server = &http.Server{
		Handler:           a.route(mux),
		Protocols:         protocols,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		// A CPU profile is written for as long as it was asked for.
		WriteTimeout:   2 * time.Minute,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       s.log.Named("admin").StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	a.running.Go(func() {
		if err := a.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.Fail(fmt.Errorf("the admin port: %w", err))
		}
	})
	return a, nil
}

func (a *admin) route(mux http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			a.health.ServeHTTP(w, r)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, 1<<10)
		mux.ServeHTTP(w, r)
	})
}

func (a *admin) addr() string { return a.listener.Addr().String() }

func (a *admin) close(ctx context.Context) {
	// Watches of gRPC health stay open until they are cut.
	a.health.Stop()
	if err := a.server.Shutdown(ctx); err != nil {
		a.server.Close()
	}
	a.running.Wait()
}

func (s *Service) serveReadiness(w http.ResponseWriter, _ *http.Request) {
	state := s.readiness.state()
	status := http.StatusOK
	if !state.Ready {
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, state)
}

func (s *Service) serveVersion(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, build{
		Service:  s.cfg.Name,
		Instance: s.instanceID,
		Version:  Version(),
		Mode:     s.cfg.Mode,
		Build:    buildSettings(),
	})
}

func (s *Service) setLogLevel(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, "the body is too long; send a level, for example debug", http.StatusRequestEntityTooLarge)
		return
	}
	name := strings.TrimSpace(string(body))
	level := hclog.LevelFromString(name)
	if level == hclog.NoLevel || level == hclog.Off {
		http.Error(w, fmt.Sprintf("%q is not a level; send trace, debug, info, warn or error", name), http.StatusBadRequest)
		return
	}
	was := s.log.GetLevel()
	s.log.SetLevel(level)
	s.log.Info("the log level was changed", "from", was, "to", level)
	fmt.Fprintln(w, level)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(v) // the reader is gone: nobody to tell
}
