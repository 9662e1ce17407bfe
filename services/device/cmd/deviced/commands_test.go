package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/marquee-ads/marquee/platform/auth"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
)

const (
	identify   = devicev1.CommandKind_COMMAND_KIND_IDENTIFY
	refresh    = devicev1.CommandKind_COMMAND_KIND_REFRESH
	takedown   = devicev1.CommandKind_COMMAND_KIND_TAKEDOWN
	screenshot = devicev1.CommandKind_COMMAND_KIND_SCREENSHOT

	queued   = devicev1.CommandState_COMMAND_STATE_QUEUED
	sent     = devicev1.CommandState_COMMAND_STATE_SENT
	done     = devicev1.CommandState_COMMAND_STATE_DONE
	declined = devicev1.CommandState_COMMAND_STATE_DECLINED
	failed   = devicev1.CommandState_COMMAND_STATE_FAILED
)

// send sends a command with a request id of its own.
func (i *instance) send(t *testing.T, id string, kind devicev1.CommandKind, creative string) *devicev1.Command {
	t.Helper()
	answer, err := i.SendCommand(i.owner(t), &devicev1.SendCommandRequest{
		OrganisationId: organisation, DeviceId: id, RequestId: ulid.Make().String(), Kind: kind, CreativeId: creative,
	})
	require.NoError(t, err)
	return answer.GetCommand()
}

// command is a command with what became of it.
func (i *instance) command(t *testing.T, id, commandID string) *devicev1.Command {
	t.Helper()
	answer, err := i.GetCommand(i.owner(t), &devicev1.GetCommandRequest{OrganisationId: organisation, DeviceId: id, CommandId: commandID})
	require.NoError(t, err)
	return answer.GetCommand()
}

func (i *instance) becomes(t *testing.T, c *devicev1.Command, want devicev1.CommandState) *devicev1.Command {
	t.Helper()
	var now *devicev1.Command
	require.Eventually(t, func() bool {
		now = i.command(t, c.GetDeviceId(), c.GetCommandId())
		return now.GetState() == want
	}, patience, 10*time.Millisecond, "it does not become %s, and is %s", want, now.GetState())
	return now
}

func (i *instance) group(t *testing.T, requestID string, ids ...string) *devicev1.Group {
	t.Helper()
	made, err := i.CreateGroup(i.owner(t), &devicev1.CreateGroupRequest{OrganisationId: organisation, RequestId: requestID, Name: "Munich"})
	require.NoError(t, err)
	if len(ids) == 0 {
		return made.GetGroup()
	}
	filled, err := i.AddGroupDevices(i.owner(t), &devicev1.AddGroupDevicesRequest{
		OrganisationId: organisation, GroupId: made.GetGroup().GetGroupId(), DeviceIds: ids,
	})
	require.NoError(t, err)
	require.EqualValues(t, len(ids), filled.GetGroup().GetDeviceCount())
	return filled.GetGroup()
}

// downCommand is a command as a player gets it.
type downCommand struct {
	CommandID       string `json:"command_id"`
	Kind            string `json:"kind"`
	DurationMS      int64  `json:"duration_ms"`
	CreativeID      string `json:"creative_id"`
	PlaylistVersion *int64 `json:"playlist_version"`
}

func nextCommand(t *testing.T, p player) downCommand {
	t.Helper()
	for {
		m := next(t, p)
		if !strings.HasSuffix(m.topic, "/down/commands") {
			continue
		}
		var c downCommand
		require.NoError(t, json.Unmarshal([]byte(m.payload), &c))
		return c
	}
}

// png is an image of so many bytes, as replies have it.
func png(size int) string {
	return base64.StdEncoding.EncodeToString(append([]byte("\x89PNG\r\n\x1a\n"), make([]byte, size-8)...))
}

// TestCommands sends each kind at one instance to a player that is connected to
// another.
func TestCommands(t *testing.T) {
	w := newWorld(t)
	one, two := w.start(t), w.start(t)
	each(t, func(t *testing.T, connect func(*testing.T, string, *devicev1.Credentials) player) {
		device, other := one.enrol(t, requestID(t)), one.enrol(t, requestID(t)+"-other")
		id := device.GetDeviceId()
		topic := "d/" + id + "/up/commands"
		put(t, one, id, "a")
		put(t, one, id, "b")

		// Before the player is there.
		early := two.send(t, id, identify, "")
		require.Equal(t, queued, early.GetState())
		require.WithinDuration(t, time.Now().Add(5*time.Minute), early.GetExpireTime().AsTime(), time.Minute)
		p := connect(t, one.players, device)
		require.Equal(t, []bool{true}, p.subscribe(t, "d/"+id+"/down/commands"))
		require.Equal(t, downCommand{CommandID: early.GetCommandId(), Kind: "IDENTIFY", DurationMS: 10000}, nextCommand(t, p))
		require.NotNil(t, one.becomes(t, early, sent).GetSendTime())
		require.NoError(t, p.publish(topic, fmt.Appendf(nil, `{"command_id":%q,"result":"DONE"}`, early.GetCommandId())))
		after := one.command(t, id, early.GetCommandId())
		require.Equal(t, done, after.GetState())
		require.NotNil(t, after.GetReplyTime())

		began := time.Now()
		down := two.send(t, id, takedown, "a")
		require.EqualValues(t, 2, down.GetPlaylistVersion())
		require.WithinDuration(t, time.Now().Add(24*time.Hour), down.GetExpireTime().AsTime(), time.Minute)
		got := nextCommand(t, p)
		require.Less(t, time.Since(began), time.Second)
		t.Logf("a command that was sent at another instance arrived %s after it was asked for", time.Since(began))
		version := int64(2)
		require.Equal(t, downCommand{CommandID: down.GetCommandId(), Kind: "TAKEDOWN", CreativeID: "a", PlaylistVersion: &version}, got)

		// It is not answered, and comes again on the next connection, wherever that is.
		p.close()
		p = connect(t, two.players, device)
		require.Equal(t, []bool{true}, p.subscribe(t, "d/"+id+"/down/#"))
		require.Equal(t, got, nextCommand(t, p))
		// Who subscribes again on one connection gets the playlist again, and no command twice.
		require.Equal(t, []bool{true}, p.subscribe(t, "d/"+id+"/down/#"))
		anew := one.send(t, id, refresh, "")
		require.Equal(t, downCommand{CommandID: anew.GetCommandId(), Kind: "REFRESH"}, nextCommand(t, p))

		t.Run("Others", func(t *testing.T) {
			q := connect(t, one.players, other)
			for _, payload := range []string{
				fmt.Sprintf(`{"command_id":%q,"result":"DONE"}`, down.GetCommandId()), // of another device
				`{"command_id":"cmd_01ARZ3NDEKTSV4RRFFQ69G5FAV","result":"DONE"}`, `{"result":"DONE"}`,
				`{"command_id":"cmd_01ARZ3NDEKTSV4RRFFQ69G5FAV' OR 'a'='a","result":"DONE"}`,
				"", "{", "[]", "7", "null", "\xff\x00", `{"command_id":7}`, strings.Repeat("[", 60000),
			} {
				require.NoError(t, q.publish("d/"+other.GetDeviceId()+"/up/commands", []byte(payload)), payload)
			}
			require.Error(t, q.publish(topic, fmt.Appendf(nil, `{"command_id":%q,"result":"DONE"}`, down.GetCommandId())))
			q.close()
			require.Equal(t, sent, one.command(t, id, down.GetCommandId()).GetState())
		})

		answer := func(c *devicev1.Command, rest string) *devicev1.Command {
			t.Helper()
			require.NoError(t, p.publish(topic, fmt.Appendf(nil, `{"command_id":%q,%s}`, c.GetCommandId(), rest)))
			return one.command(t, id, c.GetCommandId())
		}
		require.Equal(t, declined, answer(down, `"result":"DECLINED","detail":"not now"`).GetState())
		again := answer(down, `"result":"DONE","detail":"after all"`)
		require.Equal(t, declined, again.GetState(), "the first reply counts")
		require.Equal(t, "not now", again.GetDetail())
		require.Equal(t, failed, answer(anew, `"result":"FAILED"`).GetState())

		for name, c := range map[string]struct {
			kind         devicev1.CommandKind
			reply        string
			state        devicev1.CommandState
			detail, kept string
		}{
			"Picture":       {screenshot, `"result":"DONE","image":"` + png(45_000) + `"`, done, "", "image/png"},
			"JPEG":          {screenshot, `"result":"DONE","image":"/9j/"`, done, "", "image/jpeg"},
			"Declined":      {screenshot, `"result":"DECLINED","detail":"no screen"`, declined, "no screen", ""},
			"TooLarge":      {screenshot, `"result":"DONE","image":"` + png(45_001) + `"`, failed, "the player's image has 45001 bytes: at most 45000 are taken", ""},
			"NotAnImage":    {screenshot, `"result":"DONE","image":"R0lGODlh"`, failed, "the player's image is neither PNG nor JPEG", ""},
			"NotBase64":     {screenshot, `"result":"DONE","image":"?"`, failed, "the player's image is not base64", ""},
			"NoImage":       {screenshot, `"result":"DONE"`, failed, "the player sent no image", ""},
			"Unasked":       {identify, `"result":"DONE","image":"` + png(100) + `"`, done, "", ""},
			"UnknownResult": {identify, `"result":"MAYBE"`, failed, `the player's result "MAYBE" is none of DONE, DECLINED and FAILED`, ""},
			"NoResult":      {identify, `"detail":"x"`, failed, `the player's result "" is none of DONE, DECLINED and FAILED`, ""},
			"LongDetail":    {identify, `"result":"DONE","detail":"` + strings.Repeat("ä", 400) + `"`, done, strings.Repeat("ä", 250), ""},
			"Control":       {identify, `"result":"DONE","detail":"\u001b[2J\u0000x"`, done, " [2J x", ""},
		} {
			t.Run(name, func(t *testing.T) {
				command := two.send(t, id, c.kind, "")
				require.Equal(t, command.GetCommandId(), nextCommand(t, p).CommandID)
				got := answer(command, c.reply)
				require.Equal(t, c.state, got.GetState())
				require.Equal(t, c.detail, got.GetDetail())
				require.Equal(t, c.kept, got.GetImageMediaType())
				require.Equal(t, c.kept != "", len(got.GetImage()) > 0)
			})
		}

		var listed []*devicev1.Command
		req := &devicev1.ListCommandsRequest{OrganisationId: organisation, DeviceId: id, PageSize: 2}
		for {
			page, err := one.ListCommands(one.owner(t), req)
			require.NoError(t, err)
			listed = append(listed, page.GetCommands()...)
			if req.PageToken = page.GetNextPageToken(); req.GetPageToken() == "" {
				break
			}
		}
		require.Len(t, listed, 15)
		require.True(t, slices.IsSortedFunc(listed, func(a, b *devicev1.Command) int { return strings.Compare(b.GetCommandId(), a.GetCommandId()) }))
		for _, c := range listed {
			require.Empty(t, c.GetImage(), "lists have no images")
		}
		select {
		case <-p.lost():
			t.Fatal("something of this ended the connection")
		default:
		}
		p.close()
	})
}

// TestGroupCommands takes a creative down on the devices of a group, which are
// connected to two instances or to none.
func TestGroupCommands(t *testing.T) {
	w := newWorld(t)
	one, two := w.start(t), w.start(t)
	var devices []*devicev1.Credentials
	var ids []string
	for n := range 5 {
		c := one.enrol(t, fmt.Sprint("request-", n))
		devices, ids = append(devices, c), append(ids, c.GetDeviceId())
		put(t, one, c.GetDeviceId(), "a")
	}
	group := one.group(t, "a-group-1", ids[:4]...)
	var players []player
	for n, at := range []*instance{one, two, one} {
		p, err := dial5(t, at.players, ids[n], devices[n].GetSecret())
		require.NoError(t, err)
		require.Equal(t, []bool{true}, p.subscribe(t, "d/"+ids[n]+"/down/commands"))
		players = append(players, p)
	}
	outside, err := dial5(t, two.players, ids[4], devices[4].GetSecret())
	require.NoError(t, err)
	require.Equal(t, []bool{true}, outside.subscribe(t, "d/"+ids[4]+"/down/commands"))

	req := &devicev1.SendGroupCommandRequest{OrganisationId: organisation, GroupId: group.GetGroupId(), RequestId: "takedown-1", Kind: takedown, CreativeId: "a"}
	began := time.Now()
	command, err := one.SendGroupCommand(one.owner(t), req)
	require.NoError(t, err)
	require.EqualValues(t, 4, command.GetCommand().GetDeviceCount())
	for n, p := range players {
		got := nextCommand(t, p)
		require.Equal(t, [2]string{"TAKEDOWN", "a"}, [2]string{got.Kind, got.CreativeID})
		require.NoError(t, p.publish("d/"+ids[n]+"/up/commands", fmt.Appendf(nil, `{"command_id":%q,"result":"DONE"}`, got.CommandID)))
		require.Equal(t, group.GetGroupId(), two.command(t, ids[n], got.CommandID).GetGroupId())
	}
	t.Logf("all had it %s after it was asked for", time.Since(began))
	counts := func() map[devicev1.CommandState]int32 {
		t.Helper()
		found, err := two.GetGroupCommand(two.owner(t), &devicev1.GetGroupCommandRequest{
			OrganisationId: organisation, GroupId: group.GetGroupId(), GroupCommandId: command.GetCommand().GetGroupCommandId(),
		})
		require.NoError(t, err)
		all := make(map[devicev1.CommandState]int32)
		for _, c := range found.GetCommand().GetCounts() {
			all[c.GetState()] = c.GetCount()
		}
		return all
	}
	require.Equal(t, map[devicev1.CommandState]int32{done: 3, queued: 1}, counts())
	for outcome, want := range map[string]float64{"sent": 3, "done": 3, "declined": 0, "failed": 0, "ignored": 0} {
		name := `device_commands_total{outcome="` + outcome + `"}`
		require.Eventually(t, func() bool { return one.metric(t, name)+two.metric(t, name) == want }, patience, 20*time.Millisecond, "%s is not %v", name, want)
	}
	// A repeat sends nothing; another body is refused.
	again, err := two.SendGroupCommand(two.owner(t), req)
	require.NoError(t, err)
	require.Equal(t, command.GetCommand().GetGroupCommandId(), again.GetCommand().GetGroupCommandId())
	req.CreativeId = "b"
	_, err = one.SendGroupCommand(one.owner(t), req)
	refused(t, err, codes.Aborted, "REQUEST_ID_REUSED")

	// What comes next is the next: there was nothing for it, and nothing twice.
	last := two.send(t, ids[4], identify, "")
	require.Equal(t, last.GetCommandId(), nextCommand(t, outside).CommandID)
	last = two.send(t, ids[0], identify, "")
	require.Equal(t, last.GetCommandId(), nextCommand(t, players[0]).CommandID)

	// Its counts outlive the group. Who comes late gets the takedown still.
	_, err = one.DeleteGroup(one.owner(t), &devicev1.DeleteGroupRequest{OrganisationId: organisation, GroupId: group.GetGroupId()})
	require.NoError(t, err)
	late, err := dial3(t, two.players, ids[3], devices[3].GetSecret())
	require.NoError(t, err)
	require.Equal(t, []bool{true}, late.subscribe(t, "d/"+ids[3]+"/down/commands"))
	require.Equal(t, "a", nextCommand(t, late).CreativeID)
	require.Eventually(t, func() bool { return counts()[sent] == 1 }, patience, 10*time.Millisecond)
}

func TestGroups(t *testing.T) {
	i := newWorld(t).start(t)
	var ids []string
	for n := range 4 {
		ids = append(ids, i.create(t, fmt.Sprint("request-", n)).GetDeviceId())
	}
	empty := i.group(t, "a-group-1")
	require.Regexp(t, `^grp_[0-7][0-9A-HJKMNP-TV-Z]{25}$`, empty.GetGroupId())
	require.Equal(t, empty.GetGroupId(), i.group(t, "a-group-1").GetGroupId(), "a repeat makes another group")
	_, err := i.CreateGroup(i.owner(t), &devicev1.CreateGroupRequest{OrganisationId: organisation, RequestId: "a-group-1", Name: "Berlin"})
	refused(t, err, codes.Aborted, "REQUEST_ID_REUSED")
	_, err = i.CreateGroup(i.owner(t), &devicev1.CreateGroupRequest{OrganisationId: organisation, RequestId: "request-1", Name: "Munich"})
	refused(t, err, codes.Aborted, "REQUEST_ID_REUSED")
	group := i.group(t, "a-group-2", ids[0], ids[1])
	in := func(groupID string) (found []string) {
		t.Helper()
		answer, err := i.ListDevices(i.owner(t), &devicev1.ListDevicesRequest{OrganisationId: organisation, GroupId: groupID})
		require.NoError(t, err)
		for _, d := range answer.GetDevices() {
			found = append(found, d.GetDeviceId())
		}
		return found
	}
	add := func(ids ...string) (*devicev1.AddGroupDevicesResponse, error) {
		return i.AddGroupDevices(i.owner(t), &devicev1.AddGroupDevicesRequest{OrganisationId: organisation, GroupId: group.GetGroupId(), DeviceIds: ids})
	}
	require.Empty(t, in(empty.GetGroupId()))
	require.ElementsMatch(t, ids[:2], in(group.GetGroupId()))
	for range 2 {
		added, err := add(ids[1], ids[2])
		require.NoError(t, err)
		require.EqualValues(t, 3, added.GetGroup().GetDeviceCount())
	}
	_, err = add(ids[3], "dev_01ARZ3NDEKTSV4RRFFQ69G5FAV")
	refused(t, err, codes.NotFound, "DEVICE_NOT_FOUND")
	require.ElementsMatch(t, ids[:3], in(group.GetGroupId()), "all of them or none")
	for range 2 {
		removed, err := i.RemoveGroupDevices(i.owner(t), &devicev1.RemoveGroupDevicesRequest{
			OrganisationId: organisation, GroupId: group.GetGroupId(), DeviceIds: []string{ids[0], ids[3]},
		})
		require.NoError(t, err)
		require.EqualValues(t, 2, removed.GetGroup().GetDeviceCount())
	}
	_, err = i.DeleteDevice(i.owner(t), &devicev1.DeleteDeviceRequest{OrganisationId: organisation, DeviceId: ids[1]})
	require.NoError(t, err)
	require.Equal(t, ids[2:3], in(group.GetGroupId()))
	found, err := i.GetGroup(i.owner(t), &devicev1.GetGroupRequest{OrganisationId: organisation, GroupId: group.GetGroupId()})
	require.NoError(t, err)
	require.EqualValues(t, 1, found.GetGroup().GetDeviceCount(), "a deleted device is in a group")
	_, err = add(ids[1])
	refused(t, err, codes.NotFound, "DEVICE_NOT_FOUND")

	renamed, err := i.UpdateGroup(i.owner(t), &devicev1.UpdateGroupRequest{OrganisationId: organisation, GroupId: group.GetGroupId(), Name: " Ham  burg "})
	require.NoError(t, err)
	require.Equal(t, "Ham burg", renamed.GetGroup().GetName())
	same, err := i.UpdateGroup(i.owner(t), &devicev1.UpdateGroupRequest{OrganisationId: organisation, GroupId: group.GetGroupId(), Name: "Ham burg"})
	require.NoError(t, err)
	require.Equal(t, renamed.String(), same.String(), "a repeat changes something")

	var listed []string
	req := &devicev1.ListGroupsRequest{OrganisationId: organisation, PageSize: 1}
	for {
		page, err := i.ListGroups(i.owner(t), req)
		require.NoError(t, err)
		for _, g := range page.GetGroups() {
			listed = append(listed, g.GetGroupId())
		}
		if req.PageToken = page.GetNextPageToken(); req.GetPageToken() == "" {
			break
		}
	}
	require.ElementsMatch(t, []string{group.GetGroupId(), empty.GetGroupId()}, listed)

	_, err = i.SendGroupCommand(i.owner(t), &devicev1.SendGroupCommandRequest{OrganisationId: organisation, GroupId: empty.GetGroupId(), RequestId: "command-1", Kind: refresh})
	refused(t, err, codes.FailedPrecondition, "GROUP_EMPTY")
	for range 2 {
		_, err = i.DeleteGroup(i.owner(t), &devicev1.DeleteGroupRequest{OrganisationId: organisation, GroupId: group.GetGroupId()})
		require.NoError(t, err)
	}
	_, err = add(ids[2])
	refused(t, err, codes.NotFound, "GROUP_NOT_FOUND")
	require.Empty(t, in(group.GetGroupId()))
	i.get(t, ids[2])
}

// TestCommandInput gives every field of every method what it does not take, and
// what belongs to somebody else.
func TestCommandInput(t *testing.T) {
	i := newWorld(t).start(t)
	id := i.create(t, "request-1").GetDeviceId()
	group := i.group(t, "a-group-1", id).GetGroupId()
	command := i.send(t, id, refresh, "").GetCommandId()
	whole, err := i.SendGroupCommand(i.owner(t), &devicev1.SendGroupCommandRequest{OrganisationId: organisation, GroupId: group, RequestId: "refresh-1", Kind: refresh})
	require.NoError(t, err)
	const unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV"

	sendTo := func(change func(*devicev1.SendCommandRequest)) error {
		req := &devicev1.SendCommandRequest{OrganisationId: organisation, DeviceId: id, RequestId: ulid.Make().String(), Kind: refresh}
		change(req)
		_, err := i.SendCommand(i.owner(t), req)
		group := &devicev1.SendGroupCommandRequest{
			OrganisationId: req.GetOrganisationId(), GroupId: strings.Replace(req.GetDeviceId(), id, group, 1), RequestId: req.GetRequestId(),
			Kind: req.GetKind(), DurationSeconds: req.GetDurationSeconds(), CreativeId: req.GetCreativeId(), LifetimeSeconds: req.GetLifetimeSeconds(),
		}
		if strings.HasPrefix(req.GetRequestId(), "0") {
			group.RequestId = ulid.Make().String()
		}
		_, groupErr := i.SendGroupCommand(i.owner(t), group)
		require.Equal(t, err == nil, groupErr == nil, "%v, but %v", err, groupErr)
		return err
	}
	for name, change := range map[string]func(*devicev1.SendCommandRequest){
		"ErrKindMissing":          func(r *devicev1.SendCommandRequest) { r.Kind = 0 },
		"ErrKindUnknown":          func(r *devicev1.SendCommandRequest) { r.Kind = 5 },
		"ErrRequestIDMissing":     func(r *devicev1.SendCommandRequest) { r.RequestId = "" },
		"ErrRequestIDShort":       func(r *devicev1.SendCommandRequest) { r.RequestId = "1234567" },
		"ErrRequestIDCharacters":  func(r *devicev1.SendCommandRequest) { r.RequestId = "1234 5678" },
		"ErrDevice":               func(r *devicev1.SendCommandRequest) { r.DeviceId = "7" },
		"ErrOrganisation":         func(r *devicev1.SendCommandRequest) { r.OrganisationId = "" },
		"ErrDurationOfOther":      func(r *devicev1.SendCommandRequest) { r.DurationSeconds = 10 },
		"ErrDurationNegative":     func(r *devicev1.SendCommandRequest) { r.Kind, r.DurationSeconds = identify, -1 },
		"ErrDurationLong":         func(r *devicev1.SendCommandRequest) { r.Kind, r.DurationSeconds = identify, 601 },
		"ErrCreativeMissing":      func(r *devicev1.SendCommandRequest) { r.Kind = takedown },
		"ErrCreativeCharacters":   func(r *devicev1.SendCommandRequest) { r.Kind, r.CreativeId = takedown, "a b" },
		"ErrCreativeLong":         func(r *devicev1.SendCommandRequest) { r.Kind, r.CreativeId = takedown, strings.Repeat("a", 65) },
		"ErrCreativeNUL":          func(r *devicev1.SendCommandRequest) { r.Kind, r.CreativeId = takedown, "a\x00" },
		"ErrCreativeOfOther":      func(r *devicev1.SendCommandRequest) { r.CreativeId = "a" },
		"ErrCreativeOfScreenshot": func(r *devicev1.SendCommandRequest) { r.Kind, r.CreativeId = screenshot, "a" },
		"ErrLifetimeNegative":     func(r *devicev1.SendCommandRequest) { r.LifetimeSeconds = -1 },
		"ErrLifetimeShort":        func(r *devicev1.SendCommandRequest) { r.LifetimeSeconds = 9 },
		"ErrLifetimeLong":         func(r *devicev1.SendCommandRequest) { r.LifetimeSeconds = 604801 },
	} {
		t.Run(name, func(t *testing.T) {
			err := sendTo(change)
			if name == "ErrOrganisation" {
				require.Error(t, err) // nobody is a member of none
				return
			}
			refused(t, err, codes.InvalidArgument, "VALIDATION_FAILED")
		})
	}
	require.NoError(t, sendTo(func(r *devicev1.SendCommandRequest) {
		r.Kind, r.DurationSeconds, r.LifetimeSeconds = identify, 600, 604800
	}))

	owner := i.owner(t)
	stranger := i.as(within(t), t, "acc_eve", another, auth.Owner)
	for name, c := range map[string]struct {
		code   codes.Code
		reason string
		call   func() error
	}{
		"UnknownDevice": {codes.NotFound, "DEVICE_NOT_FOUND", func() error {
			_, err := i.SendCommand(owner, &devicev1.SendCommandRequest{OrganisationId: organisation, DeviceId: "dev_" + unknown, RequestId: "command-2", Kind: refresh})
			return err
		}},
		"OthersDevice": {codes.NotFound, "DEVICE_NOT_FOUND", func() error {
			_, err := i.SendCommand(stranger, &devicev1.SendCommandRequest{OrganisationId: another, DeviceId: id, RequestId: "command-2", Kind: refresh})
			return err
		}},
		"OthersOrganisation": {codes.PermissionDenied, "NOT_A_MEMBER", func() error {
			_, err := i.SendCommand(stranger, &devicev1.SendCommandRequest{OrganisationId: organisation, DeviceId: id, RequestId: "command-2", Kind: refresh})
			return err
		}},
		"OthersCommand": {codes.NotFound, "DEVICE_NOT_FOUND", func() error {
			_, err := i.GetCommand(stranger, &devicev1.GetCommandRequest{OrganisationId: another, DeviceId: id, CommandId: command})
			return err
		}},
		"UnknownCommand": {codes.NotFound, "COMMAND_NOT_FOUND", func() error {
			_, err := i.GetCommand(owner, &devicev1.GetCommandRequest{OrganisationId: organisation, DeviceId: id, CommandId: "cmd_" + unknown})
			return err
		}},
		"CommandForm": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.GetCommand(owner, &devicev1.GetCommandRequest{OrganisationId: organisation, DeviceId: id, CommandId: unknown})
			return err
		}},
		"OthersCommands": {codes.NotFound, "DEVICE_NOT_FOUND", func() error {
			_, err := i.ListCommands(stranger, &devicev1.ListCommandsRequest{OrganisationId: another, DeviceId: id})
			return err
		}},
		"CommandsPageToken": {codes.InvalidArgument, "PAGE_TOKEN_INVALID", func() error {
			_, err := i.ListCommands(owner, &devicev1.ListCommandsRequest{OrganisationId: organisation, DeviceId: id, PageToken: "x"})
			return err
		}},
		"CommandsPageTokenNUL": {codes.InvalidArgument, "PAGE_TOKEN_INVALID", func() error {
			token := base64.RawURLEncoding.EncodeToString([]byte("commands of " + id + ":\x00"))
			_, err := i.ListCommands(owner, &devicev1.ListCommandsRequest{OrganisationId: organisation, DeviceId: id, PageToken: token})
			return err
		}},
		"CommandsPageSize": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.ListCommands(owner, &devicev1.ListCommandsRequest{OrganisationId: organisation, DeviceId: id, PageSize: 201})
			return err
		}},
		"UnknownGroup": {codes.NotFound, "GROUP_NOT_FOUND", func() error {
			_, err := i.SendGroupCommand(owner, &devicev1.SendGroupCommandRequest{OrganisationId: organisation, GroupId: "grp_" + unknown, RequestId: "command-2", Kind: refresh})
			return err
		}},
		"OthersGroup": {codes.NotFound, "GROUP_NOT_FOUND", func() error {
			_, err := i.SendGroupCommand(stranger, &devicev1.SendGroupCommandRequest{OrganisationId: another, GroupId: group, RequestId: "command-2", Kind: refresh})
			return err
		}},
		"OthersGroupCommand": {codes.NotFound, "COMMAND_NOT_FOUND", func() error {
			_, err := i.GetGroupCommand(stranger, &devicev1.GetGroupCommandRequest{OrganisationId: another, GroupId: group, GroupCommandId: whole.GetCommand().GetGroupCommandId()})
			return err
		}},
		"UnknownGroupCommand": {codes.NotFound, "COMMAND_NOT_FOUND", func() error {
			_, err := i.GetGroupCommand(owner, &devicev1.GetGroupCommandRequest{OrganisationId: organisation, GroupId: group, GroupCommandId: "gcm_" + unknown})
			return err
		}},
		"CommandOfAnotherGroup": {codes.NotFound, "COMMAND_NOT_FOUND", func() error {
			_, err := i.GetGroupCommand(owner, &devicev1.GetGroupCommandRequest{OrganisationId: organisation, GroupId: "grp_" + unknown, GroupCommandId: whole.GetCommand().GetGroupCommandId()})
			return err
		}},
		"GroupCommandForm": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.GetGroupCommand(owner, &devicev1.GetGroupCommandRequest{OrganisationId: organisation, GroupId: group, GroupCommandId: command})
			return err
		}},
		"GetUnknownGroup": {codes.NotFound, "GROUP_NOT_FOUND", func() error {
			_, err := i.GetGroup(owner, &devicev1.GetGroupRequest{OrganisationId: organisation, GroupId: "grp_" + unknown})
			return err
		}},
		"GetOthersGroup": {codes.NotFound, "GROUP_NOT_FOUND", func() error {
			_, err := i.GetGroup(stranger, &devicev1.GetGroupRequest{OrganisationId: another, GroupId: group})
			return err
		}},
		"UpdateOthersGroup": {codes.NotFound, "GROUP_NOT_FOUND", func() error {
			_, err := i.UpdateGroup(stranger, &devicev1.UpdateGroupRequest{OrganisationId: another, GroupId: group, Name: "mine"})
			return err
		}},
		"GroupNameMissing": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.CreateGroup(owner, &devicev1.CreateGroupRequest{OrganisationId: organisation, RequestId: "a-group-2"})
			return err
		}},
		"GroupNameControl": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.CreateGroup(owner, &devicev1.CreateGroupRequest{OrganisationId: organisation, RequestId: "a-group-2", Name: "a\x00"})
			return err
		}},
		"GroupNameInvisible": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.UpdateGroup(owner, &devicev1.UpdateGroupRequest{OrganisationId: organisation, GroupId: group, Name: "a\u200bb"})
			return err
		}},
		"GroupNameLong": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.UpdateGroup(owner, &devicev1.UpdateGroupRequest{OrganisationId: organisation, GroupId: group, Name: strings.Repeat("a", 101)})
			return err
		}},
		"GroupRequestID": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.CreateGroup(owner, &devicev1.CreateGroupRequest{OrganisationId: organisation, RequestId: "x", Name: "a"})
			return err
		}},
		"GroupsPageToken": {codes.InvalidArgument, "PAGE_TOKEN_INVALID", func() error {
			_, err := i.ListGroups(owner, &devicev1.ListGroupsRequest{OrganisationId: organisation, PageToken: "x"})
			return err
		}},
		"DevicesOfGroupForm": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.ListDevices(owner, &devicev1.ListDevicesRequest{OrganisationId: organisation, GroupId: id})
			return err
		}},
		"AddNone": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.AddGroupDevices(owner, &devicev1.AddGroupDevicesRequest{OrganisationId: organisation, GroupId: group})
			return err
		}},
		"AddTwice": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.AddGroupDevices(owner, &devicev1.AddGroupDevicesRequest{OrganisationId: organisation, GroupId: group, DeviceIds: []string{id, id}})
			return err
		}},
		"AddTooMany": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			var many []string
			for range 501 {
				many = append(many, "dev_"+ulid.Make().String())
			}
			_, err := i.AddGroupDevices(owner, &devicev1.AddGroupDevicesRequest{OrganisationId: organisation, GroupId: group, DeviceIds: many})
			return err
		}},
		"AddForm": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.AddGroupDevices(owner, &devicev1.AddGroupDevicesRequest{OrganisationId: organisation, GroupId: group, DeviceIds: []string{"x"}})
			return err
		}},
		"AddOthersDevice": {codes.NotFound, "GROUP_NOT_FOUND", func() error {
			_, err := i.AddGroupDevices(stranger, &devicev1.AddGroupDevicesRequest{OrganisationId: another, GroupId: group, DeviceIds: []string{id}})
			return err
		}},
		"AddToOwnGroup": {codes.NotFound, "DEVICE_NOT_FOUND", func() error {
			made, err := i.CreateGroup(stranger, &devicev1.CreateGroupRequest{OrganisationId: another, RequestId: "a-group-1", Name: "mine"})
			require.NoError(t, err)
			_, err = i.AddGroupDevices(stranger, &devicev1.AddGroupDevicesRequest{OrganisationId: another, GroupId: made.GetGroup().GetGroupId(), DeviceIds: []string{id}})
			return err
		}},
		"RemoveNone": {codes.InvalidArgument, "VALIDATION_FAILED", func() error {
			_, err := i.RemoveGroupDevices(owner, &devicev1.RemoveGroupDevicesRequest{OrganisationId: organisation, GroupId: group})
			return err
		}},
		"RemoveOthers": {codes.NotFound, "GROUP_NOT_FOUND", func() error {
			_, err := i.RemoveGroupDevices(stranger, &devicev1.RemoveGroupDevicesRequest{OrganisationId: another, GroupId: group, DeviceIds: []string{id}})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, c.call(), c.code, c.reason) })
	}
	// What a stranger deletes stays.
	_, err = i.DeleteGroup(stranger, &devicev1.DeleteGroupRequest{OrganisationId: another, GroupId: group})
	require.NoError(t, err)
	found, err := i.GetGroup(owner, &devicev1.GetGroupRequest{OrganisationId: organisation, GroupId: group})
	require.NoError(t, err)
	require.EqualValues(t, 1, found.GetGroup().GetDeviceCount())

	t.Run("Repeated", func(t *testing.T) {
		req := &devicev1.SendCommandRequest{OrganisationId: organisation, DeviceId: id, RequestId: "command-3", Kind: refresh}
		first, err := i.SendCommand(owner, req)
		require.NoError(t, err)
		again, err := i.SendCommand(owner, req)
		require.NoError(t, err)
		require.Equal(t, first.String(), again.String())
		req.Kind = screenshot
		_, err = i.SendCommand(owner, req)
		refused(t, err, codes.Aborted, "REQUEST_ID_REUSED")
	})
	t.Run("Roles", func(t *testing.T) {
		viewer := i.as(within(t), t, "acc_vera", organisation, auth.Viewer)
		_, err := i.GetCommand(viewer, &devicev1.GetCommandRequest{OrganisationId: organisation, DeviceId: id, CommandId: command})
		require.NoError(t, err)
		_, err = i.SendCommand(viewer, &devicev1.SendCommandRequest{OrganisationId: organisation, DeviceId: id, RequestId: "command-4", Kind: refresh})
		refused(t, err, codes.PermissionDenied, "ROLE_NOT_ALLOWED")
	})
	t.Run("TooMany", func(t *testing.T) {
		crowded := i.create(t, "request-2").GetDeviceId()
		for range 16 {
			i.send(t, crowded, identify, "")
		}
		_, err := i.SendCommand(owner, &devicev1.SendCommandRequest{OrganisationId: organisation, DeviceId: crowded, RequestId: "command-5", Kind: refresh})
		refused(t, err, codes.FailedPrecondition, "TOO_MANY_COMMANDS")
		both := i.group(t, "a-group-3", crowded, i.create(t, "request-3").GetDeviceId()).GetGroupId()
		answer, err := i.SendGroupCommand(owner, &devicev1.SendGroupCommandRequest{OrganisationId: organisation, GroupId: both, RequestId: "takedown-1", Kind: takedown, CreativeId: "a"})
		require.NoError(t, err)
		counts := make(map[devicev1.CommandState]int32)
		for _, c := range answer.GetCommand().GetCounts() {
			counts[c.GetState()] = c.GetCount()
		}
		require.Equal(t, map[devicev1.CommandState]int32{queued: 1, failed: 1}, counts)
		listed, err := i.ListCommands(owner, &devicev1.ListCommandsRequest{OrganisationId: organisation, DeviceId: crowded, PageSize: 200})
		require.NoError(t, err)
		require.Len(t, listed.GetCommands(), 17)
		require.True(t, slices.ContainsFunc(listed.GetCommands(), func(c *devicev1.Command) bool {
			return c.GetState() == failed && strings.HasPrefix(c.GetDetail(), "not sent: ")
		}))
	})
}
