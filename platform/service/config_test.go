package service_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/service"
)

// config is what a service with settings of its own looks like.
type config struct {
	service.Config
	DatabasePasswordFile string `help:"File with the password."`
	Hashes               int    `default:"4" help:"Hashes at once."`
}

// Validate replaces the one that embedding promotes; both must be asked.
func (c *config) Validate() error {
	if c.Hashes < 1 {
		return errors.New("--hashes: must be at least 1")
	}
	return nil
}

func parse(args ...string) (config, error) {
	return service.Parse[config]("account", args, &bytes.Buffer{})
}

func file(t *testing.T, content string) string {
	path := filepath.Join(t.TempDir(), "config.json")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestParse(t *testing.T) {
	t.Run("Defaults", func(t *testing.T) {
		c, err := parse()
		require.NoError(t, err)
		require.Equal(t, "account", c.Name)
		require.Equal(t, "development", c.Environment)
		require.Equal(t, service.Development, c.Mode)
		require.Equal(t, service.MeshNative, c.Mesh)
		require.Equal(t, "127.0.0.1:0", c.Listen)
		require.Equal(t, 2*time.Second, c.DrainDelay)
		require.Equal(t, 4, c.Hashes)
	})
	t.Run("FlagsBeatEnvironmentBeatsFileBeatsDefaults", func(t *testing.T) {
		path := file(t, `{"environment": "from-file", "log_level": "debug", "drain_delay": "7s", "drain_timeout": "8s", "hashes": 9, "admin_pprof": true,
			"database_password_file": "secrets/password"}`)
		t.Setenv("MARQUEE_DRAIN_DELAY", "6s")
		t.Setenv("MARQUEE_ENVIRONMENT", "from-env")
		c, err := parse("--config", path, "--environment", "from-flag")
		require.NoError(t, err)
		require.Equal(t, "from-flag", c.Environment)
		require.Equal(t, 6*time.Second, c.DrainDelay)
		require.Equal(t, 8*time.Second, c.DrainTimeout)
		require.Equal(t, "debug", c.LogLevel)
		require.Equal(t, 9, c.Hashes)
		require.True(t, c.AdminPprof)
		require.Equal(t, "secrets/password", c.DatabasePasswordFile)
		require.Equal(t, "127.0.0.1:0", c.Listen)
	})
	t.Run("FileNamedByTheEnvironment", func(t *testing.T) {
		t.Setenv("MARQUEE_CONFIG", file(t, `{"environment": "from-file"}`))
		c, err := parse()
		require.NoError(t, err)
		require.Equal(t, "from-file", c.Environment)
	})
	t.Run("Help", func(t *testing.T) {
		var out bytes.Buffer
		_, err := service.Parse[config]("account", []string{"--help"}, &out)
		require.ErrorIs(t, err, service.ErrAnswered)
		for _, flag := range []string{"--listen", "--drain-delay", "--hashes", "--config", "MARQUEE_LISTEN", "MARQUEE_DATABASE_PASSWORD_FILE"} {
			require.Contains(t, out.String(), flag)
		}
	})
	t.Run("EveryFlagIsExplained", func(t *testing.T) {
		var out bytes.Buffer
		_, err := service.Parse[config]("account", []string{"--help"}, &out)
		require.ErrorIs(t, err, service.ErrAnswered)
		lines := strings.Split(out.String(), "\n")
		for i, line := range lines {
			if !strings.HasPrefix(strings.TrimSpace(line), "--") {
				continue
			}
			words := len(strings.Fields(line))
			if words == 1 { // a long flag has its explanation on the next line
				words += len(strings.Fields(lines[i+1]))
			}
			require.Greater(t, words, 3, line)
		}
	})
	t.Run("Version", func(t *testing.T) {
		var out bytes.Buffer
		_, err := service.Parse[config]("account", []string{"--version"}, &out)
		require.ErrorIs(t, err, service.ErrAnswered)
		require.Equal(t, filepath.Base(os.Args[0])+" "+service.Version()+"\n", out.String())
	})
}

// An error names the flag and the fix.
func TestParseErrors(t *testing.T) {
	secret := file(t, "development-token\n")
	production := []string{"--mode=production", "--environment=production-eu"}
	for _, test := range []struct {
		name string
		args []string
		want []string
	}{
		{name: "UnknownFlag", args: []string{"--listne=x"}, want: []string{"unknown flag --listne", `did you mean "--listen"`}},
		{name: "NotADuration", args: []string{"--drain-delay=soon"}, want: []string{"--drain-delay", "duration", "soon"}},
		{name: "NotANumber", args: []string{"--hashes=many"}, want: []string{"--hashes", "many"}},
		{name: "UnknownMode", args: []string{"--mode=prod"}, want: []string{"--mode", "development", "production", "prod"}},
		{name: "Address", args: []string{"--listen=7000"}, want: []string{`--listen: "7000" is not an address; use host:port`}},
		{name: "Environment", args: []string{"--environment=Prod!"}, want: []string{"--environment: ", "lower-case letters"}},
		{name: "EmptyEnvironment", args: []string{"--environment="}, want: []string{`--environment: "" is not an environment`}},
		{name: "Name", args: []string{"--name=My Service"}, want: []string{"--name: ", "not a service name"}},
		{name: "NoDrainTimeout", args: []string{"--drain-timeout=0s"}, want: []string{"--drain-timeout: 0s leaves calls in flight no time; use for example 10s"}},
		{name: "NegativeMaxInFlight", args: []string{"--max-in-flight=-1"}, want: []string{"--max-in-flight: -1 is negative"}},
		{name: "NegativeDrainDelay", args: []string{"--drain-delay=-1s"}, want: []string{"--drain-delay: -1s is negative"}},
		{name: "PlaintextOutsideLoopback", args: []string{"--mesh=plaintext", "--listen=:7000"}, want: []string{"--listen: :7000 is not on loopback", "--mesh=native"}},
		{name: "TracingEndpoint", args: []string{"--tracing-endpoint=collector"}, want: []string{"--tracing-endpoint: "}},
		{name: "NoSuchFile", args: []string{"--config=/nonexistent/config.json"}, want: []string{"--config", "/nonexistent/config.json"}},
		{name: "FileIsNotJSON", args: []string{"--config", file(t, "listen: 7000")}, want: []string{"not a JSON object"}},
		{name: "FileIsAList", args: []string{"--config", file(t, `["listen"]`)}, want: []string{"not a JSON object", "starts with ["}},
		{name: "FileIsCutOff", args: []string{"--config", file(t, `{"hashes": 3`)}, want: []string{"not a JSON object"}},
		{name: "MoreAfterTheObject", args: []string{"--config", file(t, `{"hashes": 3} {"log_level": "debug"}`)}, want: []string{"the file has more after its JSON object; remove it"}},
		{name: "BraceAfterTheObject", args: []string{"--config", file(t, "{\"hashes\": 3}\n}")}, want: []string{"the file has more after its JSON object"}},
		{name: "TwiceInTheFile", args: []string{"--config", file(t, `{"log_level": "debug", "hashes": 3, "log-level": "info"}`)}, want: []string{"the file sets log_level twice"}},
		{name: "UnknownKeyInTheFile", args: []string{"--config", file(t, `{"listne": "x", "log_level": "debug"}`)}, want: []string{"--config: the file has unknown settings: listne; remove or rename them"}},
		{name: "WrongTypeInTheFile", args: []string{"--config", file(t, `{"hashes": "many"}`)}, want: []string{"--hashes", "many"}},
		{name: "OwnValidation", args: []string{"--hashes=0"}, want: []string{"--hashes: must be at least 1"}},
		{name: "EverythingAtOnce", args: []string{"--listen=7000", "--drain-timeout=0s"}, want: []string{"--listen: ", "--drain-timeout: "}},

		{name: "ProductionInDevelopment", args: []string{"--mode=production"}, want: []string{`--environment: "development" is not for production; name the environment`}},
		{name: "ProductionInPlaintext", args: append(production, "--mesh=plaintext"), want: []string{"--mesh: plaintext is not for production; use native or sidecar"}},
		{name: "ProductionSidecarOutsideLoopback", args: append(production, "--mesh=sidecar", "--listen=:7000"), want: []string{"--listen: :7000 is not on loopback", "listen on 127.0.0.1"}},
		{name: "ProductionAdminOutsideLoopback", args: append(production, "--admin-listen=0.0.0.0:9000"), want: []string{"--admin-listen: 0.0.0.0:9000 is not on loopback"}},
		{name: "ConsulAgentWithoutAddress", args: []string{"--consul-addr=127.0.0.1:8500,"}, want: []string{"--consul-addr: ", "without an address"}},
		{name: "ProductionSecondConsulInPlaintext", args: append(production, "--consul-addr=127.0.0.1:8500,10.0.0.1:8500"), want: []string{"--consul-addr: 10.0.0.1:8500 is neither"}},
		{name: "ProductionConsulInPlaintext", args: append(production, "--consul-addr=10.0.0.1:8500"), want: []string{"--consul-addr: 10.0.0.1:8500 is neither on loopback nor https"}},
		{name: "ProductionWithADevelopmentSecret", args: append(production, "--consul-token-file", secret), want: []string{"--consul-token-file: ", "holds a development secret"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parse(test.args...)
			require.Error(t, err)
			for _, want := range test.want {
				require.ErrorContains(t, err, want)
			}
		})
	}
	t.Run("ProductionOK", func(t *testing.T) {
		_, err := parse(append(production, "--listen=:7000", "--consul-addr=https://10.0.0.1:8501")...)
		require.NoError(t, err)
	})
	t.Run("ProductionTokenFromTheEnvironment", func(t *testing.T) {
		t.Setenv("CONSUL_HTTP_TOKEN", "development-root")
		_, err := parse(production...)
		require.ErrorContains(t, err, "CONSUL_HTTP_TOKEN is a development secret")
	})
}

func TestSecret(t *testing.T) {
	write := func(mode os.FileMode, content string) string {
		path := filepath.Join(t.TempDir(), "secret")
		require.NoError(t, os.WriteFile(path, []byte(content), mode))
		return path
	}
	development, production := &service.Config{Mode: service.Development}, &service.Config{Mode: service.Production}
	for _, test := range []struct {
		name   string
		config *service.Config
		path   string
		want   string
		err    string
	}{
		{name: "OK", config: production, path: write(0o400, "s3cret\n"), want: "s3cret"},
		{name: "KeepsSpaces", config: production, path: write(0o400, " a b \r\n"), want: " a b "},
		{name: "NotNamed", config: development, err: "--password-file: is needed"},
		{name: "Missing", config: development, path: "/nonexistent/secret", err: "no such file"},
		{name: "Empty", config: development, path: write(0o400, "\n"), err: "is empty; write the secret into it"},
		{name: "Oversized", config: development, path: write(0o400, strings.Repeat("x", 70000)), err: "at most 65536"},
		{name: "ReadableByAll", config: production, path: write(0o644, "s3cret"), err: "every user can read"},
		{name: "ReadableByAllInDevelopment", config: development, path: write(0o644, "s3cret"), want: "s3cret"},
		{name: "DevelopmentSecret", config: production, path: write(0o400, "development-s3cret"), err: "holds a development secret"},
		{name: "DevelopmentSecretInDevelopment", config: development, path: write(0o400, "development-s3cret"), want: "development-s3cret"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.config.Secret("password-file", test.path)
			require.Equal(t, test.want, got)
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				require.NotContains(t, err.Error(), "s3cret")
				return
			}
			require.NoError(t, err)
		})
	}
}

// TestMain is also the service that TestMainExits starts.
func TestMain(m *testing.M) {
	args, child := os.LookupEnv("SERVICE_TEST_MAIN")
	if !child {
		os.Exit(m.Run())
	}
	os.Args = append([]string{"accountd"}, strings.Fields(args)...)
	service.Main("account", func(ctx context.Context, cfg config) error {
		switch cfg.Hashes {
		case 2: // fails
			return errors.New("no disk")
		case 3: // does not react to being stopped
			os.Stdout.WriteString("running\n")
			select {}
		}
		svc, err := service.New(ctx, cfg.Config)
		if err != nil {
			return err
		}
		defer svc.Close()
		svc.NewGRPCServer(service.GRPCOptions{})
		os.Stdout.WriteString("running\n")
		return svc.Serve(ctx)
	})
}

func TestMainExits(t *testing.T) {
	for _, test := range []struct {
		name    string
		args    string
		env     []string
		signals []os.Signal
		code    int
		stderr  []string
		without string // of stderr
	}{
		{name: "OnSIGTERM", args: "--mesh=plaintext --drain-delay=0s", signals: []os.Signal{syscall.SIGTERM}, stderr: []string{"stopping", "stopped"}},
		{name: "OnSIGINT", args: "--mesh=plaintext --drain-delay=0s", signals: []os.Signal{syscall.SIGINT}},
		{name: "AtOnceOnTheSecondSignal", args: "--mesh=plaintext --hashes=3", signals: []os.Signal{syscall.SIGTERM, syscall.SIGINT}, code: 130},
		{name: "OnFailure", args: "--hashes=2", code: 1, stderr: []string{"[ERROR]", "no disk"}},
		{name: "OnWrongConfiguration", args: "--listen=7000 --drain-timeout=0s", code: 2, stderr: []string{
			"accountd: the configuration is not valid:\n  --listen: ", "\n  --drain-timeout: ", "See accountd --help."}},
		{name: "WithAWarningOfAMisspeltVariable", args: "--hashes=2", code: 1,
			env:     []string{"MARQUEE_DRAIN_TIMOUT=1s", "MARQUEE_CLUSTER=local", "MARQUEE_ROOT=/nowhere", "MARQUEE_LOG_LEVEL=warn", "MARQUEE_CONFIG=" + file(t, "{}")},
			stderr:  []string{"[WARN]", "no setting reads this environment variable: variable=MARQUEE_DRAIN_TIMOUT nearest=MARQUEE_DRAIN_TIMEOUT"},
			without: "variable=MARQUEE_[A-CE-Z]"},
		{name: "OnVersion", args: "--version"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			child := exec.CommandContext(ctx, os.Args[0])
			child.Env = append(append(os.Environ(), test.env...), "SERVICE_TEST_MAIN="+test.args)
			var stderr bytes.Buffer
			child.Stderr = &stderr
			stdout, err := child.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, child.Start())
			line := make([]byte, len("running\n"))
			_, _ = stdout.Read(line)
			for _, signal := range test.signals {
				require.Equal(t, "running\n", string(line))
				require.NoError(t, child.Process.Signal(signal))
			}
			err = child.Wait()
			require.NoError(t, ctx.Err(), "the process did not end")
			if test.code == 0 {
				require.NoError(t, err, stderr.String())
			}
			require.Equal(t, test.code, child.ProcessState.ExitCode(), stderr.String())
			for _, want := range test.stderr {
				require.Contains(t, stderr.String(), want)
			}
			if test.without != "" {
				require.NotRegexp(t, test.without, stderr.String())
			}
		})
	}
}
