-- One try to take the lock: {"taken", fence}, {"busy", value, pttl, ahead, arrival}, {"turn", pttl, ahead, arrival}
-- where it is free and another's turn for so long, or {"type", type}. What is proved to be "over" is empty as long as
-- nothing is; a legacy client's value may be empty too.
local key, counter, queue, seen, called, wake, command =
    KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local token, before_fence, after_fence, ttl, queues, arrival, over =
    ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1', ARGV[6], ARGV[7]

local kind = redis.call('TYPE', key).ok
if kind ~= 'string' and kind ~= 'none' then return {'type', kind} end
local value, left = redis.call('GET', key), redis.call('PTTL', key)

-- The reply to an earlier try was lost.
if value and string.find(value, '"token":"' .. token .. '"', 1, true) then
    redis.call('PEXPIRE', key, ttl)
    return {'taken', string.match(value, '|gpuctl1|{"fence":(%d+)')}
end
-- Proved to be over by one who could tell, who need not be the first in line; a lock without an end is nobody's to take.
if over ~= '' and value == over and left ~= -1 then
    redis.call('DEL', key)
    value = false
end
-- Its time is over, and the command under it may still be at work: told with -2 as the time left.
if not value and left == -2 then
    value = redis.call('GET', command)
    if over ~= '' and value == over then
        redis.call('DEL', command)
        value = false
    end
end

drop_silent(queue, seen)
local ahead
if queues then
    if arrival == '' then arrival = string.format('%.0f', now()) end
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
    return {'busy', value, left, ahead, arrival}
end
local turn = redis.call('GET', called)
if turn ~= token and (turn or ahead > 0) then
    if turn then ahead = ahead + 1 else call_first(queue, called, wake) end
    return {'turn', redis.call('PTTL', called), ahead, arrival}
end

-- By the server's clock, so that it rises also where the counter was lost.
local fence = math.max((tonumber(redis.call('GET', counter)) or 0) + 1, now())
fence = string.format('%.0f', fence)
redis.call('SET', counter, fence)
redis.call('SET', key, before_fence .. fence .. after_fence, 'PX', ttl)
redis.call('ZREM', queue, token)
redis.call('ZREM', seen, token)
redis.call('DEL', called, wake .. token, command)
return {'taken', fence}
