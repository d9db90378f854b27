package notification

// everyChannel is the bit of Session.filter that stands for all channels. No
// Channel is zero.
const everyChannel = 1

// allChannels has the bits of the channels.
const allChannels = 1<<numChannels - 2

// filterOf returns the bits of those channels that exist.
func filterOf(channels []Channel) (bits uint32) {
	for _, c := range channels {
		if c.valid() {
			bits |= 1 << c
		}
	}
	return bits
}

// Subscribe narrows a session that receives every channel to those named, and
// adds them to the others' filter. It decides on what reaches the outbox from
// now on. Values that are no channels are ignored.
func (s *Session) Subscribe(ch ...Channel) {
	if bits := filterOf(ch); bits != 0 {
		s.refilter(func(f uint32) uint32 { return f&^everyChannel | bits })
	}
}

// Unsubscribe takes channels away, from every channel too. With the last one
// gone nothing arrives.
func (s *Session) Unsubscribe(ch ...Channel) {
	if bits := filterOf(ch); bits != 0 {
		s.refilter(func(f uint32) uint32 {
			if f&everyChannel != 0 {
				f = allChannels
			}
			return f &^ bits
		})
	}
}

// SubscribeAll removes the filter.
func (s *Session) SubscribeAll() {
	s.refilter(func(uint32) uint32 { return everyChannel })
}

// refilter changes the filter. A channel that is added while a replay goes on
// counts from now on: what of it came before is neither replayed nor missed.
func (s *Session) refilter(change func(uint32) uint32) {
	if s.resume != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if old := s.filter.Load(); s.resume.replaying {
			s.resume.add(old, change(old), s.user.history.from())
		}
	}
	for {
		old := s.filter.Load()
		if s.filter.CompareAndSwap(old, change(old)) {
			return
		}
	}
}

// Subscriptions returns the channels that the filter admits, in the order of
// their declaration.
func (s *Session) Subscriptions() []Channel {
	subscriptions := []Channel{}
	for c := ChannelTrade; c < numChannels; c++ {
		if s.IsSubscribed(c) {
			subscriptions = append(subscriptions, c)
		}
	}
	return subscriptions
}

// IsSubscribed reports whether the filter admits ch.
func (s *Session) IsSubscribed(ch Channel) bool {
	return ch.valid() && admits(s.filter.Load(), ch)
}

// admits reports whether a filter lets a channel through.
func admits(filter uint32, ch Channel) bool { return filter&(everyChannel|1<<ch) != 0 }
