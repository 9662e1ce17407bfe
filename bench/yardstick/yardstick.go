// Package yardstick is what the yardsticks share: how they are started and
// stopped, and how those in front of the echo service reach it.
package yardstick

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
)

// Main runs a yardstick until SIGINT or SIGTERM. It parses the flags, listens on
// a free port of the loopback interface, prints "listening on HOST:PORT", and
// exits with 1 when serve, which the listener belongs to, fails.
func Main(serve func(ctx context.Context, listener net.Listener) error) {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := listen(ctx, serve)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
}

func listen(ctx context.Context, serve func(context.Context, net.Listener) error) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer listener.Close()
	fmt.Println("listening on", listener.Addr())
	return serve(ctx, listener)
}

// ServeGRPC serves until ctx ends.
func ServeGRPC(ctx context.Context, listener net.Listener, server *grpc.Server) error {
	defer context.AfterFunc(ctx, server.Stop)()
	return server.Serve(listener)
}

// ServeHTTP serves until ctx ends.
func ServeHTTP(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}
