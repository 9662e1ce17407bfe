package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// Configuration is a pointer to a service's config struct, which embeds Config.
type Configuration[C any] interface {
	*C
	Common() *Config
}

// Main is a service's main function; name is the service's default name in
// Consul. It reads the configuration, and runs run
// with a context that ends on SIGINT or SIGTERM; a second signal exits at
// once. It exits with 0 when run returns nil, 1 when it fails, and 2 when the
// configuration is wrong.
func Main[C any, P Configuration[C]](name string, run func(ctx context.Context, cfg C) error) {
	cfg, err := Parse[C, P](name, os.Args[1:], os.Stdout)
	if errors.Is(err, ErrAnswered) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: the configuration is not valid:\n%s\nSee %s --help.\n", program(), indent(err.Error()), program())
		os.Exit(2)
	}
	collectLess()
	ctx, stop := signalled(context.Background())
	err = run(ctx, cfg)
	stop()
	if err != nil {
		newLogger(*P(&cfg).Common()).Error("stopped", "error", err)
		os.Exit(1)
	}
}

// signalled ends the context on the first SIGINT or SIGTERM and the process on
// the second.
func signalled(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		os.Exit(130)
	}()
	return ctx, cancel
}

// ErrAnswered is returned by Parse when --help or --version was asked for and
// has been printed: there is nothing to run.
var ErrAnswered = errors.New("the question was answered")

// Parse reads a service's configuration: flags beat environment variables,
// which beat the file named by --config, which beats the defaults. What is
// wrong comes back as one error with a line each that names the flag and the
// fix. --help and --version go to stdout.
func Parse[C any, P Configuration[C]](name string, args []string, stdout io.Writer) (C, error) {
	var (
		cfg      C
		answered bool
		extra    struct {
			Config  kong.ConfigFlag  `type:"existingfile" placeholder:"FILE" help:"JSON file with any of these settings: the flags' names with underscores."`
			Version kong.VersionFlag `env:"-" help:"Print the version and exit."`
		}
	)
	parser, err := kong.New(P(&cfg),
		kong.Embed(&extra),
		kong.Name(program()),
		kong.Description("The "+name+" service. Flags beat environment variables, which beat the file, which beats the defaults."),
		kong.Vars{"name": name, "version": program() + " " + Version()},
		kong.DefaultEnvars("MARQUEE"),
		kong.Configuration(loadFile),
		kong.Writers(stdout, stdout),
		kong.Exit(func(int) { answered = true }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: false, WrapUpperBound: 100}),
	)
	if err != nil {
		return cfg, fmt.Errorf("reading the definition of the configuration: %w", err)
	}
	_, err = parser.Parse(args)
	if answered {
		return cfg, ErrAnswered
	}
	if err != nil {
		return cfg, err
	}
	// A service's own Validate hides the promoted one, so both are called.
	if err := P(&cfg).Common().Validate(); err != nil {
		return cfg, err
	}
	if own, ok := any(P(&cfg)).(interface{ Validate() error }); ok {
		if err := own.Validate(); err != nil {
			return cfg, err
		}
	}
	warnOfUnread(newLogger(*P(&cfg).Common()), parser.Model, os.Environ())
	return cfg, nil
}

// fileValues are the settings of a configuration file, by flag name.
type fileValues map[string]any

func loadFile(r io.Reader) (kong.Resolver, error) {
	decoder := json.NewDecoder(r)
	decoder.UseNumber()
	notObject := func(err error) error { return fmt.Errorf("the file is not a JSON object: %w", err) }
	start, err := decoder.Token()
	if err != nil {
		return nil, notObject(err)
	}
	if start != json.Delim('{') {
		return nil, notObject(fmt.Errorf("it starts with %v", start))
	}
	values := make(fileValues)
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, notObject(err)
		}
		var value any
		if err := decoder.Decode(&value); err != nil {
			return nil, notObject(err)
		}
		if number, ok := value.(json.Number); ok {
			value = number.String()
		}
		name := strings.ReplaceAll(fmt.Sprint(key), "_", "-")
		if _, twice := values[name]; twice {
			return nil, fmt.Errorf("the file sets %s twice; remove one", strings.ReplaceAll(name, "-", "_"))
		}
		values[name] = value
	}
	if _, err := decoder.Token(); err != nil {
		return nil, notObject(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file has more after its JSON object; remove it")
	}
	return values, nil
}

// Validate refuses keys that no flag has: a misspelt setting must not be
// silently without effect.
func (v fileValues) Validate(app *kong.Application) error {
	known := map[string]bool{}
	for _, group := range app.AllFlags(false) {
		for _, flag := range group {
			known[flag.Name] = true
		}
	}
	var unknown []string
	for name := range v {
		if !known[name] {
			unknown = append(unknown, strings.ReplaceAll(name, "-", "_"))
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	sort.Strings(unknown)
	return fmt.Errorf("--config: the file has unknown settings: %s; remove or rename them", strings.Join(unknown, ", "))
}

// Resolve gives the file's value for a flag, unless the environment has one.
func (v fileValues) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, name := range flag.Envs {
		if _, ok := os.LookupEnv(name); ok {
			return nil, nil
		}
	}
	return v[flag.Name], nil
}

// program is what the executable is called.
func program() string { return filepath.Base(os.Args[0]) }

func indent(s string) string { return "  " + strings.ReplaceAll(s, "\n", "\n  ") }
