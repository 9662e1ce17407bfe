package vms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/marquee-ads/marquee/platform/bootstrap"
	"github.com/marquee-ads/marquee/platform/environment"
	"github.com/marquee-ads/marquee/platform/keys"
)

// Wait waits until the machines are a healthy cluster with its policies and
// tokens, which it makes, or until ctx ends. It must run where the machines can
// be reached: in the box's network. A machine whose kernel panicked ends it at
// once, with the machine's last words.
func (e *Environment) Wait(ctx context.Context, env *environment.Environment) error {
	consul, err := env.Consul()
	if err != nil {
		return err
	}
	nomad, err := env.Nomad()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &watch{e: e, nodes: e.Nodes(), reached: map[string]string{}}
	var watching sync.WaitGroup
	watching.Go(func() {
		if err := w.follow(ctx); err != nil {
			cancel(err)
		}
	})
	cluster := bootstrap.Cluster{Consul: consul, Nomad: nomad, Keys: env.Keys(), Progress: e.config.Say}
	servers, clients := e.names()
	err = bootstrap.Ensure(ctx, cluster)
	if err == nil {
		err = w.started(ctx)
	}
	if err == nil {
		err = bootstrap.WaitHealthy(ctx, cluster, servers, clients)
	}
	because := context.Cause(ctx)
	cancel(nil)
	watching.Wait()
	switch {
	case err == nil:
		return nil
	case because != nil && !errors.Is(err, because):
		return fmt.Errorf("%w (%w)", because, err)
	default:
		return fmt.Errorf("%w%s", err, w.lastWords())
	}
}

// watch follows the machines from their first sign of life on.
type watch struct {
	e       *Environment
	nodes   []keys.Node
	mu      sync.Mutex
	reached map[string]string // by node: the furthest it got
}

// stage is how far a machine is, and the port that shows it.
type stage struct{ name, port string }

// stages are those of a machine, in order. The operator does not reach the agents
// of clients: those are heard of from the servers.
func stages(role keys.Role) []stage {
	all := []stage{{"booting", ""}, {"sshd", "22"}, {"nomad", "4646"}}
	if role == keys.Client {
		return all[:2]
	}
	return all
}

// done says whether a machine has come as far as can be seen from here.
func (w *watch) done(n keys.Node) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := stages(n.Role)
	return w.reached[n.Name] == all[len(all)-1].name
}

// follow says every few seconds where the machines are until all are there, and
// returns an error when one of them cannot get there.
func (w *watch) follow(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	start, said := time.Now(), ""
	for n := 1; ; n++ {
		for _, node := range w.nodes {
			if err := panicked(w.e.SerialLog(node.Name)); err != nil {
				return fmt.Errorf("%s does not start: %w", node.Name, err)
			}
		}
		w.look(ctx)
		if line := w.summary(); line != said || line != "" && n%5 == 0 {
			w.e.config.Say(fmt.Sprintf("%s (%d s)", or(line, "all machines have started"), int(time.Since(start).Seconds())))
			said = line
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// started waits until all machines were seen: what the cluster says of one that
// has just been replaced is about the one before.
func (w *watch) started(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		left := w.summary()
		if left == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the machines to start: %w (%s)", context.Cause(ctx), left)
		case <-tick.C:
		}
	}
}

// look tries the ports of the machines that are not there yet.
func (w *watch) look(ctx context.Context) {
	var group sync.WaitGroup
	for _, node := range w.nodes {
		if w.done(node) {
			continue
		}
		group.Go(func() {
			for _, stage := range stages(node.Role)[1:] {
				if !listens(ctx, net.JoinHostPort(node.Address, stage.port)) {
					return
				}
				w.mu.Lock()
				w.reached[node.Name] = stage.name
				w.mu.Unlock()
			}
		})
	}
	group.Wait()
}

func listens(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, 800*time.Millisecond)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// summary is "booting: client-1; sshd: server-1", without those that are done.
func (w *watch) summary() string {
	var parts []string
	for _, stage := range stages(keys.Server) {
		var there []string
		for _, node := range w.nodes {
			if !w.done(node) && or(w.at(node), "booting") == stage.name {
				there = append(there, node.Name)
			}
		}
		if len(there) > 0 {
			parts = append(parts, stage.name+": "+strings.Join(there, " "))
		}
	}
	return strings.Join(parts, "; ")
}

func (w *watch) at(n keys.Node) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reached[n.Name]
}

// lastWords are the ends of the consoles of machines that did not get anywhere.
func (w *watch) lastWords() string {
	var text strings.Builder
	for _, node := range w.nodes {
		if w.at(node) == "" {
			said, err := readEnd(w.e.SerialLog(node.Name))
			if err == nil {
				fmt.Fprintf(&text, "\n%s's console ends with:\n%s", node.Name, lastLines(said, 5))
			}
		}
	}
	return text.String()
}

// panicked is the reason why a kernel gave up, from its console.
func panicked(log string) error {
	said, err := readEnd(log)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read its console: %w", err)
	}
	// A machine that was started again writes to the same file.
	if at := strings.LastIndex(said, "Linux version "); at >= 0 {
		said = said[at:]
	}
	lines := strings.Split(said, "\n")
	bad := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, "Kernel panic") })
	if bad < 0 {
		return nil
	}
	from := max(0, bad-3)
	return fmt.Errorf("its kernel panicked (%s):\n%s", log, lastLines(strings.Join(lines[from:bad+1], "\n"), 4))
}

// consoleEnd is how much of a console is looked at: a boot writes 40 KB.
const consoleEnd = 128 << 10

func readEnd(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > consoleEnd {
		if _, err := f.Seek(-consoleEnd, io.SeekEnd); err != nil {
			return "", err
		}
	}
	var text bytes.Buffer
	if _, err := io.Copy(&text, io.LimitReader(f, 2*consoleEnd)); err != nil {
		return "", err
	}
	return text.String(), nil
}
