// Command mediad gives players on its own machine what they show: files of a folder
// that are named by the SHA-256 of what is in them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

// stopBound is how long answers may go on after the signal to end.
const stopBound = 5 * time.Second

type cli struct {
	Folder string `required:"" type:"path" help:"Folder of the files. One that is not there yet has none."`
	Listen string `required:"" placeholder:"HOST:PORT" help:"Address to listen on: one of loopback, because everybody is answered."`
}

// Validate refuses addresses that other machines reach.
func (c *cli) Validate() error {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %q is no address; use 127.0.0.1:8090, for example", c.Listen)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("--listen: %s is not on loopback; use 127.0.0.1", c.Listen)
	}
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], slog.New(slog.NewTextHandler(os.Stderr, nil)), nil)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mediad:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends. listening is told the address, when it is not nil.
func run(ctx context.Context, args []string, log *slog.Logger, listening func(net.Addr)) error {
	var c cli
	parser, err := kong.New(&c, kong.Name("mediad"), kong.Description("Serves files named by their SHA-256: GET /<64 hexadecimal digits>, ranges too."))
	if err != nil {
		return err
	}
	if _, err := parser.Parse(args); err != nil {
		return err
	}
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{
		Handler: handler(c.Folder, log), ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 5 * time.Minute, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	log.Info("listening", "address", l.Addr(), "folder", c.Folder)
	if listening != nil {
		listening(l.Addr())
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
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
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// A name that is a hash leads nowhere else.
var hash = regexp.MustCompile(`^[0-9a-f]{64}$`)

func handler(folder string, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n") // whoever asked may be gone
	})
	mux.HandleFunc("GET /{sha256}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("sha256")
		if !hash.MatchString(name) {
			http.Error(w, "want /<SHA-256 in 64 lower-case hexadecimal digits>", http.StatusNotFound)
			return
		}
		file, err := os.Open(filepath.Join(folder, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			http.Error(w, "there is nothing with this SHA-256", http.StatusNotFound)
			return
		case err != nil:
			log.Error("media not read", "sha256", name, "err", err)
			http.Error(w, "it cannot be read", http.StatusInternalServerError)
			return
		}
		defer file.Close()
		w.Header().Set("ETag", `"`+name+`"`)
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		// No time of change: what is under a name never changes.
		http.ServeContent(w, r, "", time.Time{}, file)
	})
	return mux
}
