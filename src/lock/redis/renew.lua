-- Lets the lock that this token holds live for so long at least, and renews its second record, or ends that where
-- nothing renews it any more: 1, or 0 where the lock is not the token's.
local key, second = KEYS[1], KEYS[2]
local token, ttl, is_renewed, is_late = '"token":"' .. ARGV[1] .. '"', tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4] == '1'

local kind = redis.call('TYPE', key).ok
local value = kind == 'string' and redis.call('GET', key)
local last = redis.call('GET', second)
if last and not string.find(last, token, 1, true) then last = false end
-- Its time ran out while the holder was suspended, and nobody has come since: that one would have cleared our record.
if kind == 'none' and is_late and last then
    value = string.match(last, '^%d+ (.*)$')
    redis.call('SET', key, value, 'PX', ttl)
end
if not (value and string.find(value, token, 1, true)) then return 0 end
local left = redis.call('PTTL', key)
if left ~= -1 and left < ttl then redis.call('PEXPIRE', key, ttl) end
if is_renewed then
    local count = last and tonumber(string.match(last, '^%d+')) or 0
    -- A server without memory takes no new value, and lets nobody take the lock either.
    redis.pcall('SET', second, string.format('%d', count + 1) .. ' ' .. value, 'PX', SECOND)
elseif last then
    redis.call('DEL', second)
end
return 1
