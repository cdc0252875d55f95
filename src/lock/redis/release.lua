-- Gives up the lock, or the place in the line for it, and calls the next: 1 if it was held by this token, or by anybody
-- where that is enough; {"type", type} where the key is no lock. The 'holder' has ended what worked under it; the
-- 'bearer' of a token that was taken by hand knows nothing of that, and it keeps its second record; or 'anybody'.
-- `waited`: so long has one waited who has the machine's lock of that place next.
local key, queue, seen, called, wake, second = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local token, whose, place, waited = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

local kind = redis.call('TYPE', key).ok
if kind ~= 'string' and kind ~= 'none' then return {'type', kind} end
local function is_ours(text) return text and string.find(text, '"token":"' .. token .. '"', 1, true) end
local held = is_ours(redis.call('GET', key))
local is_over = whose == 'anybody' or (whose == 'holder' and is_ours(redis.call('GET', second)))
if whose == 'anybody' then held = redis.call('EXISTS', key, second) > 0 end
if held then redis.call('DEL', key) end
if is_over then redis.call('DEL', second) end
redis.call('ZREM', queue, token)
redis.call('ZREM', seen, token)
redis.call('DEL', wake .. token)
if redis.call('GET', called) == token then redis.call('DEL', called) end
if redis.call('EXISTS', key, called) == 0 then
    drop_silent(queue, seen)
    call_first(queue, called, wake, place, waited)
end
return held and 1 or 0
