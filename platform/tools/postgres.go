package tools

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// Our SQL needs 15; newer majors than 18 have not been tried.
const (
	oldestPostgres = 15
	newestPostgres = 18
)

const unpackedPostgres = embeddedpostgres.V18

func postgresPrograms() []string { return []string{"initdb", "postgres", "pg_ctl"} }

func postgresFolder(root string) string {
	return filepath.Join(folder(root), "postgres-"+string(unpackedPostgres))
}

// findPostgres prefers what was unpacked before, so that a data folder made by
// it is not met by another major that the system got later.
func findPostgres(ctx context.Context, root string) (string, error) {
	var dirs []string
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	if config, err := exec.LookPath("pg_config"); err == nil {
		ctx, cancel := context.WithTimeout(ctx, versionTimeout)
		defer cancel()
		if out, err := exec.CommandContext(ctx, config, "--bindir").Output(); err == nil {
			dirs = append(dirs, strings.TrimSpace(string(out)))
		}
	}
	packaged, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", err
	}
	slices.Reverse(packaged)
	dirs = append(append(dirs, packaged...), "/usr/local/pgsql/bin")

	own := filepath.Join(postgresFolder(root), "bin")
	if holds(own, postgresPrograms()...) {
		return own, nil
	}
	reason := "not unpacked yet, not on PATH and not in /usr/lib/postgresql"
	for _, dir := range dirs {
		if !holds(dir, postgresPrograms()...) {
			continue
		}
		version, err := versionOf(ctx, filepath.Join(dir, "postgres"), "--version")
		if err != nil {
			return "", err
		}
		major, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
		if n, err := strconv.Atoi(major); err == nil && n >= oldestPostgres && n <= newestPostgres {
			return dir, nil
		}
		reason = fmt.Sprintf("%s holds %s, wanted is %d to %d", dir, version, oldestPostgres, newestPostgres)
	}
	return "", fmt.Errorf("postgres: %w: %s", ErrMissing, reason)
}

// unpackPostgres lets the embedded-postgres library download and unpack. The
// library unpacks only as part of starting a server, so a server is started and
// stopped in a throw-away folder; as root that part is refused by initdb, after
// the unpacking, and does not matter. The library takes no context: when ctx
// ends, its goroutine runs on until the download ends.
func unpackPostgres(ctx context.Context, root string, progress Progress) error {
	out := postgresFolder(root)
	temp, err := tempBeside(out)
	if err != nil {
		return err
	}
	port, err := freePort(ctx)
	if err != nil {
		return fmt.Errorf("unpack postgres: %w", err)
	}
	unpacked := filepath.Join(temp, "unpacked")
	if err := os.MkdirAll(unpacked, 0o755); err != nil {
		return fmt.Errorf("unpack postgres: %w", err)
	}
	server := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(unpackedPostgres).Port(port).Logger(io.Discard).StartTimeout(time.Minute).
		CachePath(filepath.Join(temp, "download")).
		RuntimePath(filepath.Join(temp, "runtime")).
		BinariesPath(unpacked))

	// The library leaves its log, and takes no other folder for it.
	logs := filepath.Join(os.TempDir(), "embedded_postgres_log*")
	before, err := filepath.Glob(logs)
	if err != nil {
		return err
	}
	stop := ticking(progress, fmt.Sprintf("fetching postgres %s (15 MB)", unpackedPostgres))
	defer stop()
	ended := make(chan error, 1)
	go func() {
		err := server.Start()
		if err == nil {
			err = server.Stop()
		}
		ended <- err
	}()
	select {
	case err = <-ended:
	case <-ctx.Done():
		return fmt.Errorf("fetch postgres: %w", ctx.Err())
	}
	defer os.RemoveAll(temp)
	if after, err := filepath.Glob(logs); err == nil {
		for _, log := range after {
			if !slices.Contains(before, log) {
				_ = os.Remove(log)
			}
		}
	}
	bin := filepath.Join(unpacked, "bin")
	if !holds(bin, postgresPrograms()...) {
		return fmt.Errorf("fetch postgres %s: %w: put initdb, postgres and pg_ctl of version %d to %d on PATH", unpackedPostgres, err, oldestPostgres, newestPostgres)
	}
	// The server runs as another user when the cluster runs as root.
	if err := readableByAll(unpacked); err != nil {
		return fmt.Errorf("unpack postgres: %w", err)
	}
	found, err := versionOf(ctx, filepath.Join(bin, "postgres"), "--version")
	if err != nil {
		return err
	}
	if minor(found) != minor("v"+string(unpackedPostgres)) {
		return fmt.Errorf("postgres %s does not run here: it is %s", unpackedPostgres, found)
	}
	return replaceFolder(unpacked, out)
}

func freePort(ctx context.Context) (uint32, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "localhost:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("not a TCP address")
	}
	return uint32(addr.Port), nil
}

// readableByAll gives everyone the rights that the owner has, but to write.
func readableByAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o444
		if mode&0o100 != 0 || d.IsDir() {
			mode |= 0o111
		}
		return os.Chmod(path, mode)
	})
}
