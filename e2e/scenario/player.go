package scenario

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/stack"
)

// Nothing is what a display shows that shows nothing.
const Nothing = "nothing"

// Player is the player of one display, enrolled with a claim code as a person does
// it, who also reads what it says.
type Player struct {
	// ID is the display's.
	ID string

	process *exec.Cmd
	exited  chan error

	mu    sync.Mutex
	shown []Shown
	plays []Played
	lines []string
}

// Shown is what a display began to show.
type Shown struct {
	// Creative is its id, that of a showing in booked air time, or Nothing.
	Creative string
	// Text are the lines of a text, each of which ends; it comes a moment later.
	Text string
	// Time is when the player said so.
	Time time.Time
}

// Played is a play that the player wrote down.
type Played struct {
	ID, Creative string
	Duration     time.Duration
}

// StartPlayer starts the player of a display, which knows these gateways and nothing
// else, until the test ends.
func StartPlayer(ctx context.Context, t testing.TB, id, claimCode string, gateways []stack.Gateway) *Player {
	t.Helper()
	built, err := release.Build(ctx, "player")
	require.NoError(t, err)
	var doors []string
	for _, g := range gateways {
		doors = append(doors, g.Devices)
	}
	bases, _ := Addresses(gateways)
	p := &Player{ID: id, exited: make(chan error, 1)}
	p.process = exec.Command(built["player"].Path, "--dir", t.TempDir(), "--server", strings.Join(doors, ","), //nolint:gosec,noctx // our own binary, which is ended below
		"--gateway", strings.Join(bases, ","), "--claim-code", claimCode)
	p.process.Stderr = os.Stderr
	p.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.process.StdoutPipe()
	require.NoError(t, err)
	started := make(chan error, 1)
	go func() {
		// Pdeathsig is sent when the thread ends that started the process.
		runtime.LockOSThread()
		err := p.process.Start()
		started <- err
		if err != nil {
			return
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.hear(lines.Text(), time.Now())
		}
		p.exited <- p.process.Wait()
	}()
	require.NoError(t, <-started)
	t.Cleanup(func() {
		if p.exited != nil {
			_ = p.process.Process.Kill()
			<-p.exited //nolint:errcheck // it was killed
		}
		if t.Failed() {
			const tail = 100
			t.Logf("what the player said last:\n%s", strings.Join(p.lines[max(0, len(p.lines)-tail):], "\n"))
		}
	})
	return p
}

var playLine = regexp.MustCompile(`^\S+ dev_\w+ played (\S+) for (\S+): (\w{26})$`)

func (p *Player) hear(line string, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = append(p.lines, line)
	if text, below := strings.CutPrefix(line, "    "); below && len(p.shown) > 0 {
		p.shown[len(p.shown)-1].Text += text + "\n"
	}
	if m := showsLine.FindStringSubmatch(line); m != nil {
		p.shown = append(p.shown, Shown{Creative: m[2], Time: at})
	} else if m := playLine.FindStringSubmatch(line); m != nil {
		if lasted, err := time.ParseDuration(m[2]); err == nil {
			p.plays = append(p.plays, Played{ID: m[3], Creative: m[1], Duration: lasted})
		}
	}
}

// Showing waits until the display begins to show what matches, and not before after.
// It returns what that is.
func (p *Player) Showing(ctx context.Context, t testing.TB, after time.Time, limit time.Duration, what string, matches func(Shown) bool) Shown {
	t.Helper()
	var found Shown
	Eventually(ctx, t, limit, "the display shows "+what, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, s := range p.shown {
			if s.Time.After(after) && matches(s) {
				found = s
				return nil
			}
		}
		return fmt.Errorf("it has shown %v", p.shown)
	})
	return found
}

// Plays are those that it wrote down so far whose creative matches.
func (p *Player) Plays(matches func(creative string) bool) []Played {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []Played
	for _, play := range p.plays {
		if matches(play.Creative) {
			found = append(found, play)
		}
	}
	return found
}

// End ends the player as a person does, and waits for it.
func (p *Player) End(t testing.TB) {
	t.Helper()
	require.NoError(t, p.process.Process.Signal(syscall.SIGINT))
	select {
	case err := <-p.exited:
		p.exited = nil
		require.NoError(t, err)
	case <-time.After(30 * time.Second):
		require.Fail(t, "the player does not end")
	}
}
