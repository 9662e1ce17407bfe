package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/marquee-ads/marquee/services/device/player"
)

const (
	redrawEvery  = 200 * time.Millisecond
	summaryEvery = 5 * time.Second
)

// screen shows what is played: of one display each change, with a line below it on a
// terminal that is always of now; of many a summary, and with each their changes, too.
type screen struct {
	out, errOut io.Writer
	one         bool // there is one display
	each        bool // lines of each are printed
	terminal    bool

	mu    sync.Mutex
	drawn bool // the status line is there
}

func newScreen(out, errOut io.Writer, one, each bool) *screen {
	s := &screen{out: out, errOut: errOut, one: one, each: one || each}
	if f, ok := out.(*os.File); ok && one {
		info, err := f.Stat()
		s.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return s
}

// line writes a line, above the status line.
func (s *screen) line(to io.Writer, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintf(to, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
}

func (s *screen) clear() {
	if s.drawn {
		fmt.Fprint(s.out, "\r\x1b[K")
		s.drawn = false
	}
}

// Shows implements player.Observer.
func (s *screen) Shows(d *player.Display, item *player.Item) {
	switch {
	case !s.each:
	case item == nil:
		now, verb := d.Status(), "shows"
		if now.Off {
			verb = "is"
		}
		s.line(s.out, "%s %s %s", d.DeviceID(), verb, nothing(now, time.Now()))
	default:
		text, ok, err := d.Text(*item)
		if err != nil {
			s.line(s.errOut, "%s: %v", d.DeviceID(), err)
		}
		below := ""
		if ok && err == nil {
			below = s.written(text)
		}
		s.line(s.out, "%s shows %s for %s%s", d.DeviceID(), item.CreativeID, item.Duration(), below)
	}
}

// written are the lines of a text, each below the one before: on a terminal with its
// colours and its alignment.
func (s *screen) written(text player.Text) string {
	lines, width := strings.Split(text.Text, "\n"), 0
	for _, line := range lines {
		width = max(width, utf8.RuneCountInString(line))
	}
	style, end := "", ""
	if s.terminal {
		style, end = colour(38, text.Color)+colour(48, text.Background), "\x1b[0m"
		if text.Bold {
			style += "\x1b[1m"
		}
	}
	var all strings.Builder
	for _, line := range lines {
		if s.terminal {
			room := width - utf8.RuneCountInString(line)
			left := room / 2
			switch text.Alignment {
			case "left":
				left = 0
			case "right":
				left = room
			}
			line = " " + strings.Repeat(" ", left) + line + strings.Repeat(" ", room-left) + " "
		}
		all.WriteString("\n    " + style + line + end)
	}
	return all.String()
}

// colour is what a terminal takes for #RRGGBB, of its text with 38 and behind it with
// 48; empty for anything else.
func colour(of int, text string) string {
	rgb, err := hex.DecodeString(strings.TrimPrefix(text, "#"))
	if err != nil || len(rgb) != 3 {
		return ""
	}
	return fmt.Sprintf("\x1b[%d;2;%d;%d;%dm", of, rgb[0], rgb[1], rgb[2])
}

// Played implements player.Observer.
func (s *screen) Played(d *player.Display, play player.Play) {
	if s.each {
		s.line(s.out, "%s played %s for %s: %s", d.DeviceID(), play.CreativeID, time.Duration(play.DurationMS)*time.Millisecond, play.ID)
	}
}

// Identifies implements player.Observer: of many displays, too.
func (s *screen) Identifies(d *player.Display, duration time.Duration) {
	s.line(s.out, "%s identifies itself for %s", d.DeviceID(), duration)
}

// Says implements player.Observer.
func (s *screen) Says(d *player.Display, text string) {
	if s.each {
		s.line(s.errOut, "%s: %s", d.DeviceID(), text)
	}
}

// run draws until ctx ends.
func (s *screen) run(ctx context.Context, displays []*player.Display) {
	every := summaryEvery
	switch {
	case s.one && !s.terminal:
		return
	case s.one:
		every = redrawEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.draw(displays)
		case <-ctx.Done():
			s.draw(displays)
			if s.one {
				fmt.Fprintln(s.out)
			}
			return
		}
	}
}

func (s *screen) draw(displays []*player.Display) {
	if s.one {
		text := statusLine(displays[0].DeviceID(), displays[0].Status(), time.Now())
		s.mu.Lock()
		defer s.mu.Unlock()
		s.clear()
		fmt.Fprint(s.out, text)
		s.drawn = true
		return
	}
	var sum player.Status
	connections := make(map[player.Connection]int)
	showing, off := 0, 0
	for _, d := range displays {
		now := d.Status()
		connections[now.Connection]++
		if now.Item != nil {
			showing++
		} else if now.Off {
			off++
		}
		sum.Plays, sum.Unsent, sum.Held = sum.Plays+now.Plays, sum.Unsent+now.Unsent, sum.Held+now.Held
		sum.Dropped, sum.Rejected = sum.Dropped+now.Dropped, sum.Rejected+now.Rejected
	}
	s.line(s.out, "%d displays: %d connected, %d refused, %d replaced, %d showing, %d off; %d plays, %d unsent, %d held, %d rejected, %d LOST",
		len(displays), connections[player.Connected], connections[player.Refused], connections[player.Replaced], showing, off,
		sum.Plays, sum.Unsent, sum.Held, sum.Rejected, sum.Dropped)
}

// nothing is what a display is that shows nothing, in times of this machine's zone.
func nothing(s player.Status, now time.Time) string {
	const soon = 20 * time.Hour // when the time of day is enough
	switch {
	case !s.Off:
		return "nothing"
	case s.Until.IsZero():
		return "off"
	case s.Until.Sub(now) < soon:
		return "off until " + s.Until.Local().Format("15:04")
	default:
		return "off until " + s.Until.Local().Format("Mon 15:04")
	}
}

// statusLine is what a display does at a moment.
func statusLine(id string, s player.Status, now time.Time) string {
	shows := nothing(s, now)
	if s.Item != nil {
		shows = fmt.Sprintf("%s %ds", s.Item.CreativeID, int(max(0, s.Until.Sub(now)).Round(time.Second)/time.Second))
	}
	text := fmt.Sprintf("%s  %s  v%d  %s  %d unsent", id, shows, s.Playlist, s.Connection, s.Unsent)
	if now.Before(s.Identify) {
		text = "*** THIS IS " + text
	}
	if s.Held > 0 {
		text += fmt.Sprintf("  %d held", s.Held)
	}
	if s.Dropped > 0 {
		text += fmt.Sprintf("  %d LOST", s.Dropped)
	}
	return text
}
