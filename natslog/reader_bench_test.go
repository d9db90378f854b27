package natslog

import (
	"context"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// Reading what is there: a Reader at its warm-up, or behind an outage. An op is an
// archive.
func BenchmarkReader(b *testing.B) {
	s := natstest.Start(b, natstest.Config{})
	logs := 0
	for _, size := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("blocks of %d", size), func(b *testing.B) {
			logs++
			l := open(b, Config{URL: s.URL, Name: fmt.Sprintf("log%d", logs), MaxBytes: 4 << 30})
			js, err := jetstream.New(s.Connect())
			require.NoError(b, err)
			for n := 0; n < b.N; n += size {
				var data []byte
				for i := range size {
					data, err = note(fmt.Sprint(n+i), "alice", notification.P1).AppendBinary(data)
					require.NoError(b, err)
				}
				_, err := js.PublishMsgAsync(newBlockMsg(l.subject(notification.P1, 0), fmt.Sprint(n), size, data))
				require.NoError(b, err)
				if n/size%1000 == 0 {
					<-js.PublishAsyncComplete()
				}
			}
			<-js.PublishAsyncComplete()
			r := reader(b, l, Position{})
			ctx := context.Background()
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if _, _, err := r.Next(ctx); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// From PublishWait to Next: a round trip through the log, one at a time.
func BenchmarkPublishToReader(b *testing.B) {
	s := natstest.Start(b, natstest.Config{})
	l := open(b, Config{URL: s.URL})
	p := publisher(b, l, PublisherConfig{})
	r := reader(b, l, Position{})
	ctx := context.Background()
	n := note("", "alice", notification.P0)
	for i := 0; b.Loop(); i++ {
		n.ID = fmt.Sprint(i)
		if err := p.Publish(n, nil); err != nil {
			b.Fatal(err)
		}
		if _, _, err := r.Next(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
