-- One try to take the lock: {"taken", fence}, {"busy", value, pttl, ahead, arrival, second}, {"turn", pttl, ahead,
-- arrival} where it is free and another's turn for so long, or {"type", type}. Who asks has the machine's lock of that
-- place: a holder that had it is dead. `over` is a second record that was not renewed for its whole time.
local key, counter, queue, seen, called, wake, second, server =
    KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local token, before_fence, after_fence, ttl, queues, arrival, place, over, wait =
    ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1', ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9])
local is_renewed, waited = ARGV[10] == '1', ARGV[11]

local kind = redis.call('TYPE', key).ok
if kind ~= 'string' and kind ~= 'none' then return {'type', kind} end
local another, id = another_id(server)
if another then
    redis.call('SET', second, another .. ' somebody from before the fail-over', 'PX', wait)
    redis.call('SET', server, another)
end
local value, left, last = redis.call('GET', key), redis.call('PTTL', key), redis.call('GET', second)

-- The reply to an earlier try was lost.
if value and string.find(value, '"token":"' .. token .. '"', 1, true) then
    redis.call('PEXPIRE', key, ttl)
    if is_renewed then renew_second(second, last, value) end
    return {'taken', string.match(value, '|gpuctl1|{"fence":(%d+)')}
end
local function was_here(text) return string.find(text, '"place":"' .. place .. '"', 1, true) end
-- A lock without an end is nobody's to take.
if value and left ~= -1 and was_here(value) then
    redis.call('DEL', key)
    value = false
end
if last and (last == over or was_here(last)) then
    redis.call('DEL', second)
    last = false
end
-- The key has gone before its holder, or with it: nobody knows, and from now on its time is the server's too.
if not value and last then
    if redis.call('PTTL', second) > wait then redis.call('PEXPIRE', second, wait) end
    value, left = string.match(last, '^%x+ (.*)$'), redis.call('PTTL', second)
end

drop_silent(queue, seen)
local ahead
if queues then
    if arrival == '' then arrival = string.format('%.0f', now() - waited) end
    redis.call('ZADD', queue, 'NX', arrival, token)
    redis.call('ZADD', seen, now() / 1000, token)
    redis.call('PEXPIRE', queue, 60000)
    redis.call('PEXPIRE', seen, 60000)
    ahead = redis.call('ZRANK', queue, token)
else
    ahead = redis.call('ZCARD', queue)
end
if value then
    -- One that does not wait in line was faster than the one that was called.
    redis.call('DEL', called)
    return {'busy', value, left, ahead, arrival, last or ''}
end
local turn = redis.call('GET', called)
if turn ~= token and turn ~= place and (turn or ahead > 0) then
    if turn then ahead = ahead + 1 else call_first(queue, called, wake) end
    return {'turn', redis.call('PTTL', called), ahead, arrival}
end

-- By the server's clock, so that it rises also where the counter was lost.
local fence = math.max((tonumber(redis.call('GET', counter)) or 0) + 1, now())
fence = string.format('%.0f', fence)
value = before_fence .. fence .. after_fence
redis.call('SET', counter, fence)
if id then redis.call('SET', server, id) end
if is_renewed then renew_second(second, last, value) end
redis.call('SET', key, value, 'PX', ttl)
redis.call('ZREM', queue, token)
redis.call('ZREM', seen, token)
redis.call('DEL', called, wake .. token)
return {'taken', fence}
