package server_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/blobs"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/media"
	"github.com/marquee-ads/marquee/services/order/postgres/postgrestest"
	"github.com/marquee-ads/marquee/services/order/server"
)

// TestCreatives has creatives from their first version to the end, in messages.
func TestCreatives(t *testing.T) {
	store, db := postgrestest.On(t, &pg)
	require.NoError(t, db.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		return store.PutDisplay(ctx, tx, order.Display{
			DeviceID: display, OrganisationID: owner, LoopLength: time.Minute, SlotLength: 10 * time.Second, SlotPrice: order.Money{Currency: "EUR"},
			TimeZone: "Europe/Berlin", Revision: 1, Playable: true,
		})
	}))
	kept, err := blobs.Open(t.Context(), "file://"+t.TempDir(), blobs.Limits{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, kept.Close()) })
	looked, err := media.New(kept, media.DefaultLimits().Memory)
	require.NoError(t, err)
	now := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	sales := order.New(store, order.Outside{Media: looked}, func() time.Time { return now }, rand.Reader)
	orders, s := server.NewServer(sales), server.NewCreatives(sales)
	ctx := auth.ContextWithCaller(t.Context(), auth.Caller{AccountID: "acc_ada"})
	create := func(t *testing.T, requestID string, content *orderv1.CreativeContent) *orderv1.Creative {
		t.Helper()
		made, err := s.CreateCreative(ctx, &orderv1.CreateCreativeRequest{OrganisationId: buyer, RequestId: requestID, Title: "Spring", Content: content})
		require.NoError(t, err)
		return made.GetCreative()
	}
	text := func(text *orderv1.TextContent) *orderv1.CreativeContent {
		return &orderv1.CreativeContent{Content: &orderv1.CreativeContent_Text{Text: text}}
	}

	c := create(t, "request-a", text(&orderv1.TextContent{Text: "hello"}))
	v := c.GetVersions()[0]
	require.Regexp(t, "^crv_[0-7][0-9A-HJKMNP-TV-Z]{25}$", c.GetCreativeId())
	require.Regexp(t, "^/v1/media/[0-9a-f]{64}$", v.GetThumbnailUrl())
	require.Regexp(t, "^[0-9a-f]{64}$", v.GetSha256())
	want := &orderv1.Creative{
		CreativeId: c.GetCreativeId(), OrganisationId: buyer, Title: "Spring", CreateTime: moment(2026, 3, 2, 10, 0),
		Versions: []*orderv1.CreativeVersion{{
			Version: 1, MediaType: "application/vnd.marquee.text+json", Url: "/v1/media/" + v.GetSha256(), Sha256: v.GetSha256(),
			ThumbnailUrl: v.GetThumbnailUrl(), CreateTime: moment(2026, 3, 2, 10, 0),
			Content: text(&orderv1.TextContent{
				Text: "hello", Color: "#FFFFFF", Background: "#000000", SizePercent: 10, Alignment: orderv1.Alignment_ALIGNMENT_CENTER,
			}),
		}},
	}
	same(t, want, c)

	t.Run("Texts", func(t *testing.T) {
		for number, name := range orderv1.Alignment_name {
			if number == 0 {
				continue
			}
			said := text(&orderv1.TextContent{Text: "hello", Color: "#FF0000", Background: "#00FF00", SizePercent: 20, Alignment: orderv1.Alignment(number), Bold: true})
			same(t, said, create(t, "request-"+name, said).GetVersions()[0].GetContent())
		}
	})
	t.Run("Image", func(t *testing.T) {
		var content bytes.Buffer
		require.NoError(t, png.Encode(&content, image.NewGray(image.Rect(0, 0, 40, 30))))
		info, err := kept.Put(t.Context(), &content, blobs.Expect{})
		require.NoError(t, err)
		said := &orderv1.CreativeContent{Content: &orderv1.CreativeContent_MediaSha256{MediaSha256: info.Sum.String()}}
		v := create(t, "request-image", said).GetVersions()[0]
		same(t, said, v.GetContent())
		require.Equal(t, []any{"image/png", "/v1/media/" + info.Sum.String(), int32(40), int32(30), int32(0)},
			[]any{v.GetMediaType(), v.GetUrl(), v.GetWidthPx(), v.GetHeightPx(), v.GetDurationMs()})
	})
	t.Run("Video", func(t *testing.T) {
		content, err := os.ReadFile(filepath.Join("..", "media", "testdata", "front.mp4"))
		require.NoError(t, err)
		info, err := kept.Put(t.Context(), bytes.NewReader(content), blobs.Expect{})
		require.NoError(t, err)
		v := create(t, "request-video", &orderv1.CreativeContent{Content: &orderv1.CreativeContent_MediaSha256{MediaSha256: info.Sum.String()}}).GetVersions()[0]
		require.Equal(t, []any{"video/mp4", int32(64), int32(48), int32(2000), ""},
			[]any{v.GetMediaType(), v.GetWidthPx(), v.GetHeightPx(), v.GetDurationMs(), v.GetThumbnailUrl()})
	})

	held, err := orders.HoldOrder(ctx, &orderv1.HoldOrderRequest{OrganisationId: buyer, RequestId: "request-h", Lines: []*orderv1.LineRequest{{
		DeviceId: display, Flight: &orderv1.Flight{StartDate: "2026-03-09", EndDate: "2026-03-09"}, Slots: 1,
	}}})
	require.NoError(t, err)
	orderID := held.GetOrder().GetOrderId()
	_, err = orders.BookOrder(ctx, &orderv1.BookOrderRequest{OrganisationId: buyer, OrderId: orderID, RequestId: "request-b"})
	require.NoError(t, err)
	set, err := orders.SetLineCreative(ctx, &orderv1.SetLineCreativeRequest{
		OrganisationId: buyer, OrderId: orderID, LineIds: []string{held.GetOrder().GetLines()[0].GetLineId()}, CreativeId: c.GetCreativeId(),
	})
	require.NoError(t, err)
	require.Equal(t, c.GetCreativeId(), set.GetOrder().GetLines()[0].GetCreativeId())
	require.Zero(t, set.GetOrder().GetLines()[0].GetShownVersion())

	approval := &orderv1.Approval{
		CreativeId: c.GetCreativeId(), Version: 1, OwnerOrganisationId: owner, State: orderv1.ApprovalState_APPROVAL_STATE_PENDING,
		CreateTime: moment(2026, 3, 2, 10, 0), Creative: want,
	}
	list := func(state orderv1.ApprovalState) []*orderv1.Approval {
		t.Helper()
		found, err := s.ListApprovals(ctx, &orderv1.ListApprovalsRequest{OrganisationId: owner, State: state})
		require.NoError(t, err)
		return found.GetApprovals()
	}
	// requireListed makes sure that the approval is in the lists that it belongs in.
	requireListed := func() {
		t.Helper()
		for number := range orderv1.ApprovalState_name {
			found := list(orderv1.ApprovalState(number))
			if state := orderv1.ApprovalState(number); state != 0 && state != approval.GetState() {
				require.Empty(t, found, "in state %s", state)
				continue
			}
			require.Len(t, found, 1)
			same(t, approval, found[0])
		}
	}
	requireListed()
	decide := func(approve bool, reason string) *orderv1.Approval {
		t.Helper()
		decided, err := s.DecideApproval(ctx, &orderv1.DecideApprovalRequest{OrganisationId: owner, CreativeId: c.GetCreativeId(), Version: 1, Approve: approve, Reason: reason})
		require.NoError(t, err)
		return decided.GetApproval()
	}
	approval.State, approval.DecideTime = orderv1.ApprovalState_APPROVAL_STATE_APPROVED, moment(2026, 3, 2, 10, 0)
	same(t, approval, decide(true, ""))
	requireListed()
	approval.State, approval.Reason = orderv1.ApprovalState_APPROVAL_STATE_REJECTED, "too loud"
	same(t, approval, decide(false, "too loud"))
	requireListed()

	now = time.Date(2026, 3, 3, 11, 0, 0, 0, time.UTC)
	edited, err := s.UpdateCreative(ctx, &orderv1.UpdateCreativeRequest{
		OrganisationId: buyer, CreativeId: c.GetCreativeId(), Title: "Summer", Version: 1, Content: text(&orderv1.TextContent{Text: "hello again"}),
	})
	require.NoError(t, err)
	second := edited.GetCreative().GetVersions()[0]
	require.Equal(t, int32(2), second.GetVersion())
	taken, err := s.TakeDownCreative(ctx, &orderv1.TakeDownCreativeRequest{OrganisationId: buyer, CreativeId: c.GetCreativeId()})
	require.NoError(t, err)
	edited.Creative.TakeDownTime = moment(2026, 3, 3, 11, 0)
	same(t, edited.GetCreative(), taken.GetCreative())
	found, err := s.GetCreative(ctx, &orderv1.GetCreativeRequest{OrganisationId: buyer, CreativeId: c.GetCreativeId()})
	require.NoError(t, err)
	require.Len(t, found.GetCreative().GetVersions(), 2)
	approval.Creative = nil
	same(t, approval, found.GetCreative().GetVersions()[1].GetApprovals()[0])
	require.Equal(t, orderv1.ApprovalState_APPROVAL_STATE_PENDING, found.GetCreative().GetVersions()[0].GetApprovals()[0].GetState())
	require.Nil(t, found.GetCreative().GetVersions()[0].GetApprovals()[0].GetDecideTime())

	all, err := s.ListCreatives(ctx, &orderv1.ListCreativesRequest{OrganisationId: buyer, PageSize: 2})
	require.NoError(t, err)
	require.Len(t, all.GetCreatives(), 2)
	rest, err := s.ListCreatives(ctx, &orderv1.ListCreativesRequest{OrganisationId: buyer, PageToken: all.GetNextPageToken()})
	require.NoError(t, err)
	require.Len(t, rest.GetCreatives(), 4)
	require.Empty(t, rest.GetNextPageToken())
}

// Without an account there is nobody whose request ids they are.
func TestCreateCreativeOfNobody(t *testing.T) {
	_, err := server.NewCreatives(nil).CreateCreative(t.Context(), &orderv1.CreateCreativeRequest{})
	require.ErrorIs(t, err, auth.ErrTokenMissing)
}
