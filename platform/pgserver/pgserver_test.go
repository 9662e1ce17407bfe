package pgserver_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/pgserver"
	"github.com/marquee-ads/marquee/platform/tools"
)

// output collects what Postgres writes; exec's goroutine and the test share it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// folder is a short-named folder that everybody may enter.
func folder(t *testing.T, mode os.FileMode) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pg")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, mode))
	return dir
}

func config(t *testing.T, dir string) pgserver.Config {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	bin, err := tools.Ensure(ctx, tools.Postgres, func(line string) { t.Log(line) })
	require.NoError(t, err)
	password := filepath.Join(dir, "password")
	require.NoError(t, os.WriteFile(password, []byte("it's \"secret\"\n"), 0o600))
	out := &output{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(out.String())
		}
	})
	return pgserver.Config{
		BinDir: bin, DataDir: filepath.Join(dir, "v"), Role: "account", Database: "account",
		PasswordFile: password, Settings: map[string]string{"shared_buffers": "16MB", "fsync": "off"},
		Log: hclog.New(&hclog.LoggerOptions{Output: out, Level: hclog.Debug}), Output: out,
	}
}

func start(t *testing.T, cfg pgserver.Config) *pgserver.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := pgserver.Start(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	return s
}

func connect(t *testing.T, dir, role, password, database string) (*pgx.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cfg, err := pgx.ParseConfig("")
	require.NoError(t, err)
	cfg.Host, cfg.Port, cfg.User, cfg.Password, cfg.Database = dir, 5432, role, password, database
	cfg.TLSConfig, cfg.Fallbacks = nil, nil
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err == nil {
		t.Cleanup(func() { conn.Close(context.Background()) })
	}
	return conn, err
}

const secret = `it's "secret"`

func TestStart(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		cfg := config(t, folder(t, 0o755))
		s := start(t, cfg)
		info, err := os.Stat(s.SocketDir())
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o700), info.Mode().Perm())

		conn, err := connect(t, s.SocketDir(), "account", secret, "account")
		require.NoError(t, err)
		var super bool
		var checksums, addresses, encoding, owner string
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT rolsuper OR rolcreatedb OR rolcreaterole, current_setting('data_checksums'),
			current_setting('listen_addresses'), current_setting('server_encoding'), (SELECT datdba::regrole::text FROM pg_database WHERE datname = 'account')
			FROM pg_roles WHERE rolname = current_user`).Scan(&super, &checksums, &addresses, &encoding, &owner))
		require.False(t, super)
		require.Equal(t, []string{"on", "", "UTF8", "account"}, []string{checksums, addresses, encoding, owner})

		for name, try := range map[string][3]string{
			"wrong password": {"account", "secret", "account"},
			"superuser":      {"postgres", "", "account"},
			"other database": {"account", secret, "postgres"},
		} {
			_, err := connect(t, s.SocketDir(), try[0], try[1], try[2])
			var refused *pgconn.PgError
			require.ErrorAs(t, err, &refused, name)
			require.Contains(t, []string{"28P01", "28000"}, refused.Code, name)
		}
	})

	t.Run("OKAgain", func(t *testing.T) {
		cfg := config(t, folder(t, 0o755))
		s := start(t, cfg)
		conn, err := connect(t, s.SocketDir(), "account", secret, "account")
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), "CREATE TABLE kept AS SELECT 42 AS answer")
		require.NoError(t, err)
		require.NoError(t, s.Stop())

		require.NoError(t, os.WriteFile(cfg.PasswordFile, []byte("changed"), 0o600))
		s = start(t, cfg)
		_, err = connect(t, s.SocketDir(), "account", secret, "account")
		require.Error(t, err, "the old password")
		conn, err = connect(t, s.SocketDir(), "account", "changed", "account")
		require.NoError(t, err)
		var answer int
		require.NoError(t, conn.QueryRow(t.Context(), "SELECT answer FROM kept").Scan(&answer))
		require.Equal(t, 42, answer)
	})

	t.Run("OKFolderNobodyCanEnter", func(t *testing.T) {
		// Both the data and the binaries lie below a folder of mode 0700.
		dir := folder(t, 0o700)
		cfg := config(t, dir)
		copied := filepath.Join(dir, "pgsql")
		out, err := exec.CommandContext(t.Context(), "cp", "-rL", filepath.Dir(cfg.BinDir), copied).CombinedOutput()
		require.NoError(t, err, "%s", out)
		cfg.BinDir = filepath.Join(copied, "bin")
		if _, err := os.Stat(filepath.Join(copied, "share", "postgres.bki")); err != nil {
			// Debian keeps share elsewhere and its binaries find it by a fixed path.
			t.Log("the data files of these binaries are not beside them; they are used in place")
		}
		s := start(t, cfg)
		_, err = connect(t, s.SocketDir(), "account", secret, "account")
		require.NoError(t, err)
	})

	t.Run("OKInterruptedInitdb", func(t *testing.T) {
		cfg := config(t, folder(t, 0o755))
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer cancel()
			require.Eventually(t, func() bool {
				_, err := os.Stat(filepath.Join(cfg.DataDir, "data.new", "base"))
				return err == nil
			}, 20*time.Second, time.Millisecond)
		}()
		_, err := pgserver.Start(ctx, cfg)
		require.ErrorIs(t, err, context.Canceled)
		_, err = os.Stat(filepath.Join(cfg.DataDir, "data.new"))
		require.NoError(t, err, "initdb was interrupted too early or too late")
		start(t, cfg)
	})

	t.Run("OKCrash", func(t *testing.T) {
		cfg := config(t, folder(t, 0o755))
		s, err := pgserver.Start(t.Context(), cfg)
		require.NoError(t, err)
		conn, err := connect(t, s.SocketDir(), "account", secret, "account")
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), "CREATE TABLE kept (x int)")
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(s.Pid(), syscall.SIGKILL))
		var exit *exec.ExitError
		require.ErrorAs(t, s.Wait(), &exit)

		s = start(t, cfg)
		conn, err = connect(t, s.SocketDir(), "account", secret, "account")
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), "SELECT x FROM kept")
		require.NoError(t, err)
	})

	data := func(name string) func(*testing.T, *pgserver.Config) {
		return func(t *testing.T, cfg *pgserver.Config) {
			require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(cfg.DataDir, name)), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(cfg.DataDir, name), []byte("account\n"), 0o600))
		}
	}
	for name, tc := range map[string]struct {
		change func(*testing.T, *pgserver.Config)
		want   string
	}{
		"ErrOtherContent":   {data("holiday.jpg"), `holds "holiday.jpg"`},
		"ErrDataGone":       {data("database"), "its data is gone: restore it from a backup"},
		"ErrDataElsewhere":  {func(_ *testing.T, cfg *pgserver.Config) { cfg.HasData = true }, "bring back the machine or the volume that has its data"},
		"ErrNotPostgres":    {data("data/thesis.txt"), `holds "data"`},
		"ErrVersion":        {data("data/PG_VERSION"), "was made by Postgres account and the binaries"},
		"ErrPasswordEmpty":  {func(t *testing.T, cfg *pgserver.Config) { truncate(t, cfg.PasswordFile, "\n") }, "is empty"},
		"ErrPasswordLines":  {func(t *testing.T, cfg *pgserver.Config) { truncate(t, cfg.PasswordFile, "a\nb") }, "one line of printable ASCII"},
		"ErrPasswordAbsent": {func(_ *testing.T, cfg *pgserver.Config) { cfg.PasswordFile += "x" }, "reading the role's password"},
		"ErrRole":           {func(_ *testing.T, cfg *pgserver.Config) { cfg.Role = `a" "b` }, "want lower-case letters"},
		"ErrRolePostgres":   {func(_ *testing.T, cfg *pgserver.Config) { cfg.Role = "postgres" }, "belong to Postgres itself"},
		"ErrBinDir":         {func(_ *testing.T, cfg *pgserver.Config) { cfg.BinDir = cfg.DataDir }, "no such file"},
		"ErrSetting":        {func(_ *testing.T, cfg *pgserver.Config) { cfg.Settings["shared_buffers"] = "nine" }, "shared_buffers"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, folder(t, 0o755))
			tc.change(t, &cfg)
			_, err := pgserver.Start(t.Context(), cfg)
			require.ErrorContains(t, err, tc.want)
		})
	}

	t.Run("ErrOtherDatabase", func(t *testing.T) {
		cfg := config(t, folder(t, 0o755))
		require.NoError(t, start(t, cfg).Stop())
		cfg.Database = "order"
		_, err := pgserver.Start(t.Context(), cfg)
		require.ErrorContains(t, err, `holds the database "account", not "order"`)
	})

	t.Run("ErrInUse", func(t *testing.T) {
		cfg := config(t, folder(t, 0o755))
		start(t, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := pgserver.Start(ctx, cfg)
		require.ErrorContains(t, err, "another Postgres still uses the data folder")
	})
}

func truncate(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

func TestPostgresd(t *testing.T) {
	dir := folder(t, 0o755)
	program := filepath.Join(dir, "postgresd")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../cmd/postgresd").CombinedOutput()
	require.NoError(t, err, "%s", out)

	// run starts postgresd and waits until the role can log in.
	run := func(t *testing.T, cfg pgserver.Config, credential *syscall.Credential) *exec.Cmd {
		t.Helper()
		cmd := exec.Command(program, "--name", cfg.Role, "--bin-dir", cfg.BinDir, "--data-dir", cfg.DataDir,
			"--password-file", cfg.PasswordFile, "--set", "shared_buffers=16MB", "--set", "fsync=off")
		cmd.Stdout, cmd.Stderr = cfg.Output, cfg.Output
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		require.Eventually(t, func() bool {
			_, err := connect(t, filepath.Join(cfg.DataDir, "run"), "account", secret, "account")
			return err == nil
		}, 30*time.Second, 50*time.Millisecond, "the role cannot log in")
		return cmd
	}

	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run("OK/"+signal.String(), func(t *testing.T) {
			cfg := config(t, folder(t, 0o755))
			cmd := run(t, cfg, nil)
			require.NoError(t, cmd.Process.Signal(signal))
			require.NoError(t, cmd.Wait())
			require.Contains(t, fmt.Sprint(cfg.Output), "database system is shut down")
		})
	}

	t.Run("OKOrdinaryUser", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("every other test here runs as an ordinary user already")
		}
		nobody, err := user.Lookup("nobody")
		require.NoError(t, err)
		uid, err := strconv.Atoi(nobody.Uid)
		require.NoError(t, err)
		gid, err := strconv.Atoi(nobody.Gid)
		require.NoError(t, err)
		home := folder(t, 0o755)
		cfg := config(t, home)
		for _, path := range []string{home, cfg.PasswordFile} {
			require.NoError(t, os.Chown(path, uid, gid))
		}
		cmd := run(t, cfg, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)})
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, cmd.Wait())
	})

	t.Run("OKKilled", func(t *testing.T) {
		cfg := config(t, folder(t, 0o755))
		cmd := run(t, cfg, nil)
		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait())
		// The next one waits for the orphan, which got a signal to end.
		s := start(t, cfg)
		require.Contains(t, fmt.Sprint(cfg.Output), "database system is shut down")
		_, err := connect(t, s.SocketDir(), "account", secret, "account")
		require.NoError(t, err)
	})

	t.Run("ErrExitCode", func(t *testing.T) {
		cfg := config(t, folder(t, 0o755))
		cmd := run(t, cfg, nil)
		pid, err := os.ReadFile(filepath.Join(cfg.DataDir, "data", "postmaster.pid"))
		require.NoError(t, err)
		first, _, _ := bytes.Cut(pid, []byte("\n"))
		n, err := strconv.Atoi(string(first))
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(n, syscall.SIGKILL))
		var exit *exec.ExitError
		require.ErrorAs(t, cmd.Wait(), &exit)
		require.Equal(t, 1, exit.ExitCode())
	})

	t.Run("ErrFlags", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), program, "--name", "account")
		out, err := cmd.CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), "--data-dir")
	})
}
