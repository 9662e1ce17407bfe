// Command postgresd runs one service's Postgres in the foreground, on a Unix
// socket in its data folder and on no TCP port.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/platform/pgserver"
)

type config struct {
	Name         string            `required:"" help:"Name of the role and of the database that it owns, for example account. Only this role is let in, and only into this database."`
	BinDir       string            `required:"" type:"existingdir" help:"Folder with Postgres's programs (initdb, postgres), version 15 or newer."`
	DataDir      string            `required:"" type:"path" help:"Volume for the data: Postgres's own folder is DIR/data, its socket is in DIR/run. A folder that has lost its data, or holds something else, is refused."`
	PasswordFile string            `required:"" type:"existingfile" help:"File with the role's password on its first line. It is set on every start."`
	DataFile     string            `type:"existingfile" placeholder:"FILE" help:"File that says kept once the database was in use: an empty data folder is then refused instead of filled with an empty database. Any other content, or none, says nothing."`
	User         string            `default:"nobody" help:"System user that Postgres runs as when this process is root, because Postgres refuses root. The data folder is given to it."`
	Set          map[string]string `placeholder:"NAME=VALUE" help:"Further parameters of Postgres, for example max_connections=50; may be repeated."`
}

func main() {
	var cfg config
	kong.Parse(&cfg,
		kong.Name("postgresd"),
		kong.Description("Runs one service's Postgres in the foreground: makes the data folder, the role and the database when they do not exist, listens on a Unix socket only, stops it in an orderly way on SIGTERM and SIGINT, and exits with its exit code."),
		kong.DefaultEnvars("MARQUEE"))
	os.Exit(run(cfg))
}

func run(cfg config) int {
	log := hclog.New(&hclog.LoggerOptions{Name: "postgresd"})
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	hasData, err := keepsData(cfg.DataFile)
	if err != nil {
		log.Error("Postgres was not started", "error", err)
		return 1
	}
	err = pgserver.Run(ctx, pgserver.Config{
		BinDir:       cfg.BinDir,
		DataDir:      cfg.DataDir,
		Role:         cfg.Name,
		Database:     cfg.Name,
		PasswordFile: cfg.PasswordFile,
		User:         cfg.User,
		HasData:      hasData,
		Settings:     cfg.Set,
		Log:          log,
	})
	if err == nil {
		return 0
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		log.Info("stopped before Postgres ran")
		return 0
	}
	log.Error("Postgres failed", "error", err)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	return 1
}

// keepsData says whether the file of --data-file says so.
func keepsData(path string) (bool, error) {
	if path == "" {
		return false, nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("--data-file: %w", err)
	}
	return strings.TrimSpace(string(content)) == "kept", nil
}
