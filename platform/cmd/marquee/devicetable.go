package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
)

// deviceTable is what a watch has told so far.
type deviceTable struct {
	devices map[string]*watchedDevice
	// sent are those that the watch has sent since it began; nil when it has sent all.
	sent map[string]bool
	// trouble is why there is no news at the moment; empty when there is.
	trouble string
}

type watchedDevice struct {
	*devicev1.DeviceStatus
	// plays, and those that count, are those since the first watch began.
	plays, counted int
	last           *devicev1.StoredPlay
}

func newDeviceTable() deviceTable { return deviceTable{devices: make(map[string]*watchedDevice)} }

// begin says that a watch begins: what it does not send is not there any more.
func (t *deviceTable) begin() { t.sent = make(map[string]bool) }

// apply takes in what a watch tells, and says what is new, a line each.
func (t *deviceTable) apply(e *devicev1.WatchDevicesResponse) (news []string) {
	switch e := e.GetEvent().(type) {
	case *devicev1.WatchDevicesResponse_Status:
		return t.status(e.Status)
	case *devicev1.WatchDevicesResponse_DeletedDeviceId:
		return t.remove(e.DeletedDeviceId)
	case *devicev1.WatchDevicesResponse_SnapshotComplete:
		for id := range t.devices {
			if t.sent != nil && !t.sent[id] {
				news = append(news, t.remove(id)...)
			}
		}
		t.sent = nil
		return append(news, t.summary())
	case *devicev1.WatchDevicesResponse_Plays:
		for _, p := range e.Plays.GetPlays() {
			news = append(news, t.play(p))
		}
	}
	return news
}

func (t *deviceTable) status(s *devicev1.DeviceStatus) []string {
	if t.sent != nil {
		t.sent[s.GetDeviceId()] = true
	}
	d := t.devices[s.GetDeviceId()]
	if d == nil {
		d = &watchedDevice{}
		t.devices[s.GetDeviceId()] = d
	}
	before := d.DeviceStatus
	d.DeviceStatus = s
	if proto.Equal(before, s) {
		return nil
	}
	return []string{fmt.Sprintf("%s  %s  %s", s.GetDeviceId(), s.GetName(), strings.Join(differences(before, s), ", "))}
}

// differences are what is new about a device; all of it when there was nothing
// before.
func differences(before, now *devicev1.DeviceStatus) (news []string) {
	if before == nil || before.GetState() != now.GetState() {
		news = append(news, strings.ToLower(strings.TrimPrefix(now.GetState().String(), "DEVICE_STATE_")))
	}
	if before == nil || !proto.Equal(before.GetPresence(), now.GetPresence()) {
		text := "offline"
		if now.GetPresence().GetOnline() {
			text = "online"
		}
		if since := now.GetPresence().GetSinceTime(); since != nil {
			text += " since " + clock(since.AsTime(), time.Now())
		}
		news = append(news, text)
	}
	if before == nil || before.GetPlaylistVersion() != now.GetPlaylistVersion() {
		news = append(news, fmt.Sprintf("playlist %d", now.GetPlaylistVersion()))
	}
	if before != nil && before.GetRevision() != now.GetRevision() {
		news = append(news, fmt.Sprintf("settings %d", now.GetRevision()))
	}
	return news
}

func (t *deviceTable) remove(id string) []string {
	d := t.devices[id]
	if d == nil {
		return nil
	}
	delete(t.devices, id)
	return []string{fmt.Sprintf("%s  %s  deleted", id, d.GetName())}
}

func (t *deviceTable) play(p *devicev1.StoredPlay) string {
	name := ""
	if d := t.devices[p.GetDeviceId()]; d != nil {
		d.plays++
		if p.GetCounted() {
			d.counted++
		}
		if d.last == nil || d.last.GetStartTime().AsTime().Before(p.GetStartTime().AsTime()) {
			d.last = p
		}
		name = d.GetName()
	}
	return fmt.Sprintf("%s  %s  played %s", p.GetDeviceId(), name, playText(p, time.Now()))
}

// playText is a play in a few words.
func playText(p *devicev1.StoredPlay, now time.Time) string {
	text := fmt.Sprintf("%s at %s for %s", p.GetCreativeId(), clock(p.GetStartTime().AsTime(), now), (time.Duration(p.GetDurationMs()) * time.Millisecond).Round(100*time.Millisecond))
	if !p.GetCounted() {
		text += ", not counted"
	}
	return text
}

// clock is a time as short as it can be told.
func clock(at, now time.Time) string {
	at = at.Local()
	if now.Sub(at).Abs() < 12*time.Hour {
		return at.Format(time.TimeOnly)
	}
	return at.Format(time.DateTime)
}

func (t *deviceTable) summary() string {
	online := 0
	for _, d := range t.devices {
		if d.GetPresence().GetOnline() {
			online++
		}
	}
	return fmt.Sprintf("%d devices, %d online", len(t.devices), online)
}

// rows are the table as it is drawn: lines of at most width characters, at most
// height of them.
func (t *deviceTable) rows(now time.Time, width, height int) []string {
	sorted := make([]*watchedDevice, 0, len(t.devices))
	for _, d := range t.devices {
		sorted = append(sorted, d)
	}
	slices.SortFunc(sorted, func(a, b *watchedDevice) int {
		return cmp.Or(strings.Compare(a.GetName(), b.GetName()), strings.Compare(a.GetDeviceId(), b.GetDeviceId()))
	})
	head := t.summary() + "; Ctrl-C ends it"
	switch {
	case t.trouble != "":
		head = "no news: " + t.trouble + "; watching again"
	case t.sent != nil:
		head = "reading which devices there are"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s  %s\n\n", now.Format(time.TimeOnly), head)
	const above = 3 // lines that are no devices
	more := 0
	if most := max(height-above-1, 1); len(sorted) > most {
		more = len(sorted) - most
		sorted = sorted[:most]
	}
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tDEVICE\tONLINE SINCE\tPLAYLIST\tPLAYS\tCOUNTED\tLAST PLAY")
	for _, d := range sorted {
		last := "-"
		if d.last != nil {
			last = playText(d.last, now)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%d\t%s\n", clipText(d.GetName(), 32), d.GetDeviceId(), onlineSince(d.GetPresence().GetOnline(), d.GetPresence().GetSinceTime(), now),
			d.GetPlaylistVersion(), d.plays, d.counted, last)
	}
	_ = table.Flush() // a strings.Builder takes everything
	if more > 0 {
		fmt.Fprintf(&text, "and %d more\n", more)
	}
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	for i, line := range lines {
		lines[i] = clipText(line, width)
	}
	return lines
}

func onlineSince(online bool, since *timestamppb.Timestamp, now time.Time) string {
	switch {
	case online:
		return clock(since.AsTime(), now)
	case since == nil:
		return "never"
	default:
		return "off " + clock(since.AsTime(), now)
	}
}

// clipText is at most so many characters of a text.
func clipText(text string, most int) string {
	runes := []rune(text)
	if len(runes) <= most {
		return text
	}
	return string(runes[:max(most-1, 0)]) + "…"
}
